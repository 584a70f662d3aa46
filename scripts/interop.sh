#!/usr/bin/env bash
# The two programs with a client library of another language at the other end, both ways round: Python's pika, and the
# frameworks aio-pika, FastStream, kombu and Celery, where Python is 3.11 or newer; on a private broker (see broker.sh).
# Prints a line for each case: ok; FAILED, with what was expected and what came; or skipped, and why. docs/interop.md has the
# table of the cases, interop/ their code.
#
# usage: interop.sh [--npm] [WORD...]      (with words, only the cases whose name has one of them in it)
# With --npm: NestJS, @golevelup/nestjs-rabbitmq and rabbitmq-client at the other end, which want Node.js 20.19 or newer.
# Exit code: 0 if no case failed, else 1; 69 if something is missing; 70 if the build fails.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

npm=
if [ "${1-}" = --npm ]; then
    npm=yes
    shift
fi
for word; do
    case $word in
        -h | --help)
            show_help "$here/interop.sh"
            exit
            ;;
        -* | '') fail 64 "unknown word: '$word'; usage: interop.sh [--npm] [WORD...]" ;;
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

node_works() {
    have npm && node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}

# install_npm FOLDER: the programs of interop/npm, with the versions in its package-lock.json of what they need.
install_npm() {
    local folder=$1 wanted=interop/npm/package-lock.json
    mkdir -p "$folder" && cp -R interop/npm/. "$folder" || return
    if cmp -s "$wanted" "$folder/installed"; then return; fi
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) && cp "$wanted" "$folder/installed"
}

enter_root "$here"
if [ "$npm" ] && ! node_works; then
    fail 69 'missing: Node.js 20.19 or newer with npm; install it (https://nodejs.org), then run this again'
fi
need_build
need_command jq
say 'building the programs'
cargo build --quiet --locked --bins --examples || fail 70 'the build failed, see above'
install_pika "$target/interop" || fail 69 'could not install pika, see above'
# Nothing is written next to the sources, and text is UTF-8 whatever the locale.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
unset BROKER_DIR
if [ "$npm" ]; then
    install_npm "$target/interop-npm" || fail 69 'could not install the packages of interop/npm, see above'
    cases=(interop/npm_cases.py "$target/debug" "$target/interop-npm")
else
    install_frameworks "$target/interop" || fail 69 'could not install the frameworks, see above'
    cases=(interop/cases.py "$target/debug")
fi
exec "$here/broker.sh" run -- "$target/interop/bin/python" "${cases[@]}" "$@"
