# Bash completion for ferry(1), made by the program itself.
eval "$(ferry completions bash 2>/dev/null)"
