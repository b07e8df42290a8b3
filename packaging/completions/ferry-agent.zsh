#compdef ferry-agent
# Zsh completion for ferry-agent(8), made by the program itself: the script defines this function anew, which
# then completes, this time too.
local script
script="$(ferry-agent completions zsh 2>/dev/null)" || return 1
eval "$script"
_ferry-agent "$@"
