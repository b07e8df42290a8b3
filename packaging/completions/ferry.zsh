#compdef ferry
# Zsh completion for ferry(1), made by the program itself: the script defines this function anew, which
# then completes, this time too.
local script
script="$(ferry completions zsh 2>/dev/null)" || return 1
eval "$script"
_ferry "$@"
