#compdef ferry-controller
# Zsh completion for ferry-controller(8), made by the program itself: the script defines this function anew, which
# then completes, this time too.
local script
script="$(ferry-controller completions zsh 2>/dev/null)" || return 1
eval "$script"
_ferry-controller "$@"
