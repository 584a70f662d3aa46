#!/usr/bin/env bash
# The two programs with a client library of another language at the other end, both ways round: Python's pika, on a
# private broker (see broker.sh). Prints a line for each case: ok; FAILED, with what was expected and what came; or skipped,
# and why. docs/interop.md has the table of the cases, interop/ their code.
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
enter_root "$here"
need_build
say 'building the programs'
cargo build --quiet --locked --bins --examples || fail 70 'the build failed, see above'
install_pika "$target/interop" || fail 69 'could not install pika, see above'
# Nothing is written next to the sources, and text is UTF-8 whatever the locale.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
unset BROKER_DIR
exec "$here/broker.sh" run -- "$target/interop/bin/python" interop/cases.py "$target/debug" "$@"
