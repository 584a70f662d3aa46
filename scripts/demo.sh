#!/usr/bin/env bash
# The transcript of a remote procedure call: builds the programs, gets a broker (see broker.sh), starts
# rpc_server, calls it with rpc_client, stops it, and prints what both printed.
#
# usage: demo.sh [--programs FOLDER] [PROCEDURE ARGUMENT...]      (without words: fib 30)
#
# --programs FOLDER has the programs already: nothing is built.
# Exit code: that of rpc_client; 69 if something is missing; 70 if the build fails.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

build() {
    local messages=''
    if [ ! -x "$target/release/rpc_client" ]; then say 'building the programs; the first time this takes some minutes'; fi
    if [ -t 2 ]; then
        cargo build --release --locked # with its progress
    else
        messages=$(cargo build --release --locked 2>&1)
    fi || {
        if [ "$messages" ]; then printf '%s\n' "$messages" >&2; fi
        fail 70 'the build failed, see above'
    }
}

clean_up() {
    local code=$?
    trap - EXIT
    trap '' HUP INT TERM
    if [ -n "$client" ]; then end 5 "$client"; fi
    if [ -n "$server" ]; then end 5 "$server"; fi
    rm -rf "$folder"
    exit "$code"
}

demo() {
    local queue='' code=0 deadline=$((SECONDS + 30))
    # Another's broker may have servers on the default queue already. A private node is named by BROKER_DIR.
    if [ -z "${BROKER_DIR-}" ]; then queue=fib-rpc-demo-$$-$RANDOM; fi

    client='' server='' folder=$(temporary_folder demo)
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    "$programs/rpc_server" --prefetch 1 ${queue:+--queue "$queue"} >"$folder/server" &
    server=$!
    until grep -qs 'Awaiting RPC requests' "$folder/server"; do
        if ! kill -0 "$server" 2>/dev/null; then
            wait "$server" || code=$?
            fail "$code" 'rpc_server did not start, see above'
        fi
        if [ $SECONDS -gt $deadline ]; then fail 75 'rpc_server was not ready within 30 seconds'; fi
        sleep 0.05
    done

    # In the background, so that a signal to this script does not wait for it.
    "$programs/rpc_client" --format transcript ${queue:+--queue "$queue"} "$@" >"$folder/client" <&0 &
    client=$!
    wait "$client" || code=$?
    client=''
    end 10 "$server"
    server=''

    printf '$ rpc_server --prefetch 1%s\n' "${queue:+ --queue $queue}"
    cat "$folder/server"
    printf '\n$ rpc_client%s %s\n' "${queue:+ --queue $queue}" "$*"
    cat "$folder/client"
    if [ -n "$queue" ]; then say "the queue $queue stays on the broker; delete it there"; fi
    exit "$code"
}

programs='' with_broker=''
while :; do
    case ${1-} in
        -h | --help)
            show_help "$here/demo.sh"
            exit
            ;;
        --with-broker)
            with_broker=yes
            shift
            ;;
        --programs)
            given_programs "${2-}" 'demo.sh [--programs FOLDER] [PROCEDURE ARGUMENT...]'
            shift 2
            ;;
        *) break ;;
    esac
done
enter_root "$here"
if [ "$with_broker" ]; then demo "$@"; fi
if [ $# = 0 ]; then set -- fib 30; fi
if [ -z "$programs" ]; then
    need_build
    build
    programs=$target/release
fi
unset BROKER_DIR
exec "$here/broker.sh" run -- "$here/demo.sh" --with-broker --programs "$programs" "$@"
