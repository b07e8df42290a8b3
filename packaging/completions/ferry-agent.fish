# Fish completion for ferry-agent(8), made by the program itself.
ferry-agent completions fish 2>/dev/null | source
