#!/usr/bin/env bash
# All tests, against a real RabbitMQ: gets what the build and the tests miss, builds, then runs them. They start nodes
# of their own, which end with this script (see broker.sh guard); those that only need some broker take that of AMQP_URL,
# if it is set. With words and no option, only what has tests of such names is built and run.
#
# More tests run at once than there are cores, because most of them wait; RUST_TEST_THREADS has another number. Those of
# the documents, which wait for what is typed, run beside all others, and are shown after them.
#
# usage: test.sh [ARGUMENT...]      (arguments of cargo test)
# Exit code: that of cargo test; 69 if something is missing.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

# targets_of WORD: the options for the targets of which a test's name may have this in it, that is a function's or a
# module's; none for all targets, if that cannot be told.
targets_of() {
    local word=${1%::} file
    word=${word##*::}
    {
        grep -rlE "fn [a-z0-9_]*$word" src tests || true
        find src tests -name "*$word*.rs"
        if { ls README.md docs/*.md && grep -h '^## ' README.md docs/*.md; } | grep -qF -- "$1"; then echo tests/docs.rs; fi
    } | while IFS= read -r file; do
        case $file in
            src/*) echo --lib ;;
            tests/it/*) echo --test=it ;;
            tests/*) file=${file#tests/} && echo "--test=${file%.rs}" ;;
        esac
    done | sort -u
}

cores() {
    getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2
}

# run_all: all tests, once they are built. The documents' tests are tests/docs.rs. They are told from the others by the first
# letter, so that each file in tests/ is on one side or the other.
run_all() {
    local folder documents code=0
    folder=$(temporary_folder test)
    trap 'rm -rf "$folder"' EXIT
    # The guard undoes that a command in the background ignores Ctrl-C, which the documents type.
    "$here/broker.sh" guard -- cargo test --locked --test 'd*' >"$folder/documents" 2>&1 &
    documents=$!
    cargo test --locked --lib --bins --test '[!d]*' || code=$?
    wait "$documents" || code=$?
    cat "$folder/documents"
    exit "$code"
}

case ${1-} in
    -h | --help)
        show_help "$here/test.sh"
        exit
        ;;
    --guarded) run_all ;;
esac
enter_root "$here"
need_build
# For what the documents do.
need_command jq
need_command cmark
need_command sqlite3
need_command bc
need_python
need_command curl
need_promtool
# For the tests of what programs start.
need_command parallel
"$here/broker.sh" install
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(cores) * 4))}
targets=''
case $# in
    1) case $1 in *[!A-Za-z0-9_:]*) ;; *) targets=$(targets_of "$1") ;; esac ;;
esac
# Before the tests, so that a compile error shows at once.
# shellcheck disable=SC2086  # a list of options
cargo test --locked --no-run $targets "$@"
if [ $# = 0 ]; then exec "$here/broker.sh" guard -- "$here/test.sh" --guarded; fi
# shellcheck disable=SC2086  # a list of options
exec "$here/broker.sh" guard -- cargo test --locked $targets "$@"
