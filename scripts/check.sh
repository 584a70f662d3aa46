#!/usr/bin/env bash
# What has to pass before a change is accepted: format, lints, documentation, the code without default features,
# these scripts, all tests, the programs with pika (Python) at the other end, and the demonstration. Stops at the first failure.
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
step check_scripts
step "$here/test.sh"
step "$here/interop.sh"
step "$here/demo.sh" --programs "$target/debug"
say "[${SECONDS}s] all passed"
