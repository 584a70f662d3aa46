#!/usr/bin/env bash
# The two programs with a client library of another language at the other end, both ways round: Python's pika, and the
# frameworks aio-pika, FastStream, kombu and Celery, where Python is 3.11 or newer; on a private broker (see broker.sh).
# Prints a line for each case: ok; FAILED, with what was expected and what came; or skipped, and why. docs/interop.md has the
# table of the cases, interop/ their code.
#
# usage: interop.sh [WORD...]      (with words, only the cases whose name has one of them in it)
# Exit code: 0 if no case failed, else 1; 69 if something is missing; 70 if the build fails.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

for word; do
    case $word in
        -h | --help)
            show_help "$here/interop.sh"
            exit
            ;;
        -* | '') fail 64 "unknown word: '$word'; usage: interop.sh [WORD...]" ;;
    esac
done

# install_frameworks FOLDER: beside pika. All that they need is pinned, for these versions of Python.
install_frameworks() {
    local folder=$1 wanted=interop/requirements.txt
    if cmp -s "$wanted" "$folder/frameworks"; then return; fi
    if ! "$folder/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        say 'the frameworks want Python 3.11 or newer; their cases are skipped'
        return
    fi
    pip_install "$folder" "$wanted" && cp "$wanted" "$folder/frameworks"
}

enter_root "$here"
need_build
need_command jq
say 'building the programs'
cargo build --quiet --locked --bins --examples || fail 70 'the build failed, see above'
install_pika "$target/interop" || fail 69 'could not install pika, see above'
install_frameworks "$target/interop" || fail 69 'could not install the frameworks, see above'
# Nothing is written next to the sources, and text is UTF-8 whatever the locale.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
unset BROKER_DIR
exec "$here/broker.sh" run -- "$target/interop/bin/python" interop/cases.py "$target/debug" "$@"
