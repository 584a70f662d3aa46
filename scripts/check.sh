#!/usr/bin/env bash
# What has to pass before a change is accepted: format, lints, documentation, the code without default features, what
# src/amqp may import, these scripts, all tests, the programs with pika (Python) at the other end, and the demonstration. Stops at the first failure.
# All is built in one profile, Cargo's dev.
#
# usage: check.sh
# Exit code: that of the step that failed; 69 if something is missing.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

step() {
    local code=0
    say "[${SECONDS}s] $*"
    "$@" || code=$?
    if [ "$code" != 0 ]; then fail "$code" "[${SECONDS}s] failed: $*"; fi
}

check_scripts() {
    local script
    for script in scripts/*.sh .ci/run; do bash -n "$script" || return; done
    if have shellcheck; then
        shellcheck -x scripts/*.sh .ci/run
    else
        say 'shellcheck is not installed; the scripts were only parsed'
    fi
}

# src/amqp is there for anybody: it imports itself and the modules below, and names no option of the programs.
check_amqp() {
    local imports options
    imports=$(grep -rnoE 'crate::[^ ;,)]*' src/amqp | grep -vE ':crate::(amqp|mutex|terminal::text)\b' || true)
    options=$(grep -rnE -e '--[a-z]|AMQP_URL|\bclap\b' src/amqp || true)
    if [ -n "$imports$options" ]; then
        say 'not for src/amqp to know; src/remedies.rs adds it:'
        printf '%s\n' "$imports" "$options" | grep . >&2
        return 1
    fi
}

case ${1-} in
    '') ;;
    -h | --help)
        show_help "$here/check.sh"
        exit
        ;;
    *) fail 64 "unknown word: $1; usage: check.sh" ;;
esac
enter_root "$here"
need_build
if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    fail 69 'rustfmt or clippy is missing; type: rustup component add rustfmt clippy'
fi
step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
step env RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps
step cargo check --locked --no-default-features --examples --bins
step check_amqp
step check_scripts
step "$here/test.sh"
step "$here/interop.sh"
step "$here/demo.sh" --programs "$target/debug"
say "[${SECONDS}s] all passed"
