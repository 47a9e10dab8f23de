# SPDX-License-Identifier: GPL-3.0-or-later
"""What the shells need to complete the commands' words: a few lines each that ask the command.

click answers when a variable such as `_TRACKER_COMPLETE` says which shell asks, with a line for
each word: `TYPE,WORD` to bash, three lines (type, word, help) to zsh, `TYPE,WORD<tab>HELP` to fish.
"""

from __future__ import annotations

BASH = """\
# Words of {name}(1) for bash.
_narswarm_{name}() {{
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        case ${{line%%,*}} in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            *) COMPREPLY+=("${{line#*,}}") ;;
        esac
    done < <(COMP_WORDS="${{COMP_WORDS[*]}}" COMP_CWORD=$COMP_CWORD \\
        _{upper}_COMPLETE=bash_complete "$1")
}}
complete -o nosort -F _narswarm_{name} {name}
"""

ZSH = """\
#compdef {name}
# Words of {name}(1) for zsh.
local kind word about
local -a found
COMP_WORDS="${{words[*]}}" COMP_CWORD=$((CURRENT - 1)) _{upper}_COMPLETE=zsh_complete {name} |
    while read -r kind && read -r word && read -r about; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            *) if [[ $about == _ ]]; then found+=("$word"); else found+=("$word:$about"); fi ;;
        esac
    done
(( $#found )) && _describe -V '{name}' found
"""

FISH = """\
# Words of {name}(1) for fish.
function __narswarm_{name}
    set -l words COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t)
    for line in (env _{upper}_COMPLETE=fish_complete $words {name})
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case '*'
                echo $parts[2]
        end
    end
end
complete --no-files --command {name} --arguments '(__narswarm_{name})'
"""


def completions(name: str) -> dict[str, str]:
    """The files of one command, by their paths below `completions/`."""
    words = {"name": name, "upper": name.upper()}
    return {
        f"bash/{name}": BASH.format(**words),
        f"zsh/_{name}": ZSH.format(**words),
        f"fish/{name}.fish": FISH.format(**words),
    }
