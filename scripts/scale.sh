#!/usr/bin/env bash
# Measures what the numbers of docs/performance.md on scale are reckoned from, on private brokers (see broker.sh): what an
# idle server, queue and client take of the broker's memory; how many one-shot clients a second the broker lets in; and how
# many calls six queues behind one exchange take, against one queue.
#
# usage: scale.sh [--number N] [ROW...]      (without words: all rows)
#   memory       N servers with a queue each, then these queues alone, then N clients that wait for standard input (2000)
#   connections  N clients that make one call each, 16 at a time (2000)
#   queues       N calls with 256 in flight (100000), three times in turn: one queue with six servers, six with one each
# Prints a line for each figure. Exit code: 0; 64 wrong usage; 69 if something is missing; 70 if a measurement fails.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

all_rows='memory connections queues'

# broker_memory: bytes that the Erlang VM has allocated, once all its processes have thrown away what they do not need.
broker_memory() {
    "$here/broker.sh" eval '_ = [erlang:garbage_collect(P) || P <- processes()], erlang:memory(total).'
}

# resident PID: bytes that are in memory of a process.
resident() {
    awk '/^VmRSS:/ { printf "%d\n", $2 * 1024 }' "/proc/$1/status"
}

# ctl_count WORD...: how many lines rabbitmqctl has.
ctl_count() {
    "$here/broker.sh" ctl --quiet --no-table-headers "$@" | wc -l
}

# await_count NUMBER WORD...: until it has so many.
await_count() {
    local number=$1 deadline=$((SECONDS + 600))
    shift
    until [ "$(ctl_count "$@")" = "$number" ]; do
        if [ $SECONDS -gt $deadline ]; then fail 70 "rabbitmqctl $* never had $number lines"; fi
        sleep 1
    done
}

# per WHAT NUMBER BEFORE AFTER
per() {
    awk -v what="$1" -v n="$2" -v before="$3" -v after="$4" \
        'BEGIN { printf "%-32s %8.1f KiB\n", what, (after - before) / n / 1024 }'
}

memory() {
    local number=${number:-2000} base with queues clients resident_base n pids=() beam
    beam=$("$here/broker.sh" pid)
    base=$(broker_memory) resident_base=$(resident "$beam")
    for n in $(seq "$number"); do
        "$server" -q --queue "scale.$n" &
        pids+=($!)
        # Not all at once.
        if [ $((n % 100)) = 0 ]; then await_count "$n" list_consumers; fi
    done
    await_count "$number" list_consumers
    with=$(broker_memory)
    per 'resident, server and queue' "$number" "$resident_base" "$(resident "$beam")"
    awk '/^Private/ { sum += $2 } END { printf "%-32s %8.1f KiB\n", "private memory of an idle server", sum }' \
        "/proc/${pids[0]}/smaps"
    kill -TERM "${pids[@]}"
    wait
    await_count 0 list_connections
    queues=$(broker_memory)
    per 'broker, idle server' "$number" "$queues" "$with"
    per 'broker, idle queue' "$number" "$base" "$queues"

    # A client that finds no server does not wait for its input.
    "$server" -q --queue scale.1 &
    pids=($!)
    await_count 1 list_consumers
    queues=$(broker_memory)
    resident_base=$(resident "$beam")
    mkfifo "$folder/input"
    # As long as it is open here, nobody reads its end.
    exec 3<>"$folder/input"
    for n in $(seq "$number"); do
        "$client" -q --queue scale.1 fun - <"$folder/input" &
        pids+=($!)
        if [ $((n % 100)) = 0 ]; then await_count $((n + 1)) list_consumers; fi
    done
    await_count $((number + 1)) list_consumers
    clients=$(broker_memory)
    per 'broker, idle client' "$number" "$queues" "$clients"
    per 'resident, client' "$number" "$resident_base" "$(resident "$beam")"
    awk '/^Private/ { sum += $2 } END { printf "%-32s %8.1f KiB\n", "private memory of an idle client", sum }' \
        "/proc/${pids[1]}/smaps"
    kill -TERM "${pids[@]}"
    wait || true
    exec 3>&-
}

connections() {
    local number=${number:-2000} started ended pid
    "$server" -q --queue scale.ping --prefetch 16 &
    pid=$!
    await_count 1 list_consumers
    started=$(date +%s.%N)
    seq "$number" | xargs -P 16 -n 1 "$client" -q --queue scale.ping ping >/dev/null
    ended=$(date +%s.%N)
    awk -v n="$number" -v s="$started" -v e="$ended" \
        'BEGIN { printf "%-32s %8.0f a second\n", "one-shot clients", n / (e - s) }'
    kill -TERM "$pid"
    wait
}

# calls WHAT NUMBER OPTION...: how many a second a client makes.
calls() {
    local what=$1 number=$2 rate
    shift 2
    rate=$("$client" -q --stats --in-flight 256 --repeat "$number" "$@" fun 7 2>&1 >/dev/null | grep -oE '[0-9.]+ calls/s')
    printf '%-32s %8s\n' "$what" "$rate"
}

queues() {
    local number=${number:-100000} round n pids=()
    "$here/broker.sh" eval 'rabbit_exchange:declare(rabbit_misc:r(<<"/">>, exchange, <<"scale">>),
        '\''x-consistent-hash'\'', true, false, false, [], <<"scale">>).' >/dev/null
    for n in 1 2 3 4 5 6; do
        "$server" -q --prefetch 64 --queue scale.one &
        pids+=($!)
        "$server" -q --prefetch 64 --queue "scale.six.$n" --bind scale:1 &
        pids+=($!)
    done
    await_count 12 list_consumers
    for round in 1 2 3; do
        calls "round $round, one queue" "$number" --queue scale.one
        calls "round $round, six queues" "$number" --exchange scale --routing-key '{#}'
    done
    kill -TERM "${pids[@]}"
    wait
}

# Servers and clients would look for the broker for ever.
clean_up() {
    local code=$? pids
    trap - EXIT
    trap '' HUP INT TERM
    pids=$(jobs -p)
    # shellcheck disable=SC2086  # a list of numbers
    if [ -n "$pids" ]; then end 5 $pids; fi
    rm -rf "$folder"
    exit "$code"
}

on_broker() {
    local row
    for row; do "$row"; done
}

number='' rows=''
while [ $# != 0 ]; do
    case $1 in
        -h | --help)
            show_help "$here/scale.sh"
            exit
            ;;
        --number)
            number=${2-}
            case $number in '' | 0* | *[!0-9]*) fail 64 "--number takes a number, 1 or more, not '$number'" ;; esac
            shift
            ;;
        memory | connections | queues) rows="$rows $1" ;;
        on_broker) break ;;
        *) fail 64 "unknown word: '$1'; usage: scale.sh [--number N] [$all_rows]" ;;
    esac
    shift
done

if [ "${1-}" = on_broker ]; then
    shift
    folder=$(temporary_folder scale)
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    number=${SCALE_NUMBER-} server=$SCALE_PROGRAMS/rpc_server client=$SCALE_PROGRAMS/rpc_client
    on_broker "$@"
    exit
fi
enter_root "$here"
if [ -z "${SCALE_PROGRAMS-}" ]; then
    build_release
    SCALE_PROGRAMS=$programs
fi
export SCALE_PROGRAMS SCALE_NUMBER=$number BROKER_PLUGINS=rabbitmq_consistent_hash_exchange
unset AMQP_URL BROKER_DIR
# shellcheck disable=SC2086  # a list of words
exec "$here/broker.sh" run -- "$here/scale.sh" on_broker ${rows:-$all_rows}
