"""Completion scripts where click's own stumble over names with blanks, commas or wildcards. Importing this registers them."""

from __future__ import annotations

from click.shell_completion import BashComplete, FishComplete, add_completion_class

# What is offered is quoted, unless the word is in quotes already.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' offers offer
    offers=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete "$1")
    while IFS= read -r offer; do
        case $offer in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*)
                offer=${offer#plain,}
                [[ ${COMP_WORDS[COMP_CWORD]} == [\\"\\']* ]] || printf -v offer %%q "$offer"
                COMPREPLY+=("$offer")
                ;;
        esac
    done <<< "$offers"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_FISH = """\
function %(complete_func)s
    set -l offers (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) %(prog_name)s)
    for offer in $offers
        set -l parts (string split --max 1 "," -- $offer)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


@add_completion_class
class _Bash(BashComplete):
    """For bash 4.4 and later."""

    source_template = _BASH


@add_completion_class
class _Fish(FishComplete):
    """For fish 3 and later."""

    source_template = _FISH
