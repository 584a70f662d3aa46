#!/usr/bin/env bash
# Servers and clients under load on a private node, while servers and the broker are killed and restarted,
# connections are closed and unreadable messages come in (tests/chaos.rs). Prints what was done and what became of
# the calls; fails if one was lost or answered wrong, or if a process hangs. Then it makes 10,000 calls that must not run
# twice, and 10,000 that must run, while servers and the broker are killed, and counts how often each ran. Last, 10,000 files
# of 0 to 5 MB go through three servers, while servers are killed, connections cut, and the client is stopped or killed and
# started again: each output has to be there and right. It needs 2 GB in TMPDIR.
#
# usage: chaos.sh [SECONDS [SEED]]      (without words: 60 seconds, seed 1; a seed repeats a run)
# Exit code: 0, or 101 if a call or a file was lost or wrong; 69 if something is missing.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

case ${1-} in
    -h | --help)
        show_help "$here/chaos.sh"
        exit
        ;;
esac
for word; do
    case $word in *[!0-9]* | '') fail 64 "not a number: $word; usage: chaos.sh [SECONDS [SEED]]" ;; esac
done
enter_root "$here"
need_build
"$here/broker.sh" install
export CHAOS_SECONDS=${1-60} CHAOS_SEED=${2-1} CHAOS_CALLS=10000 CHAOS_FILES=10000
exec cargo test --quiet --release --locked --test chaos
