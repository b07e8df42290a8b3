# Bash completion for ferry-controller(8), made by the program itself.
eval "$(ferry-controller completions bash 2>/dev/null)"
