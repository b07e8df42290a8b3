# Fish completion for ferry-controller(8), made by the program itself.
ferry-controller completions fish 2>/dev/null | source
