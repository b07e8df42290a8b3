# Bash completion for ferry-agent(8), made by the program itself.
eval "$(ferry-agent completions bash 2>/dev/null)"
