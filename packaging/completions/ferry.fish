# Fish completion for ferry(1), made by the program itself.
ferry completions fish 2>/dev/null | source
