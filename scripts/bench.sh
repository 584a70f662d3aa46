#!/usr/bin/env bash
# Measures this pair of programs against the same pair written as the tutorials of other libraries would (benches/peers):
# C with librabbitmq, Go with amqp091-go, Python with pika, Rust with lapin. Builds them or installs them from package
# registries, skips those that it cannot, starts one private broker (see broker.sh), and runs all of them in turn, many times.
# Prints tables: medians, and in parentheses the ratio to ours, which is the median of the rounds' ratios.
#
# usage: bench.sh [--quick] [ROW...]      (without words: all rows)
#   process      one call as a whole process; also the time until its answer is on standard output
#   sequential   calls one after another
#   pipelined    256 calls in flight, prefetch 64; also the memory and the processor time of each side
#   large        a request and a reply of 1 MB; also the memory of each side
#   commands     a program for each call, two at a time, against xargs -P2 and GNU parallel -j2 without any calls, and against pika
#   files        sha256sum of a file of 100 kB for each call, against the same two
#   tail         1 % of 1,000 calls take a hundred times as long, 8 workers: in order and --unordered, against the same two
#   names        the client's memory for a million names of files, ours only
#   coprocess    programs that stay: one in C that echoes, against the built-in fun; one in Python, against pika and against
#                the same for each call, ours with all of them as the client
#   cpu          recursive fib with 1 and 2 workers, ours only
#   fib          fib by algorithm, ours only
#   settings     what prefetch, workers, calls in flight, the queue's type and confirms do, ours only
# sequential and pipelined also measure the broker alone: publish and consume on one connection; and C's pair with an
# expiration in each request, and with all properties of ours: that, ids as long as a UUID, mandatory, and the reply's type.
# --quick makes few rounds, for a look. The raw numbers go to target/bench/results.csv; those of all rows and all peers,
# if not quick, to benches/results.csv, from which benches/plot.py makes a picture.
# Exit code: 0; 64 wrong usage; 69 if something is missing; 70 if the build or a measurement fails.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

all_rows='process sequential pipelined large commands files tail names coprocess cpu fib settings'
all_peers='ours c lapin go pika'

# ---- the programs ----

# from_debian WHAT PACKAGE…
from_debian() {
    if [ "$(package_manager)" != apt-get ]; then
        say "missing: $1, which this script installs on Debian and Ubuntu only"
        return 1
    fi
    (install_packages "$@")
}

build_ours() {
    local program
    cargo build --quiet --release --locked || fail 70 'the build failed, see above'
    # A build meanwhile does not change what is measured.
    mkdir -p "$built/ours" && cp -f "$target/release/rpc_server" "$target/release/rpc_client" "$built/ours/"
    for program in measure echo; do
        cc -O2 -o "$built/$program" "benches/$program.c" || fail 70 "could not build benches/$program.c, see above"
    done
}

build_c() {
    local program
    pkg-config --exists librabbitmq 2>/dev/null || from_debian librabbitmq librabbitmq-dev || return
    mkdir -p "$built/c"
    for program in rpc_server rpc_client broker; do
        # shellcheck disable=SC2046  # a list of words
        cc -O2 -o "$built/c/$program" "benches/peers/c/$program.c" $(pkg-config --cflags --libs librabbitmq) || return
    done
}

build_go() {
    local program library=/usr/share/gocode/src/github.com/rabbitmq/amqp091-go
    if ! have go || ! [ -d "$library" ]; then
        from_debian 'Go with amqp091-go' golang-go golang-github-rabbitmq-amqp091-go-dev || return
    fi
    mkdir -p "$built/go"
    for program in rpc_server rpc_client; do
        GO111MODULE=off GOPROXY=off GOFLAGS='' GOPATH=/usr/share/gocode GOCACHE=$built/go/cache \
            go build -o "$built/go/$program" "benches/peers/go/$program.go" || return
    done
}

build_lapin() {
    CARGO_TARGET_DIR=$built/lapin cargo build --quiet --release --locked --manifest-path benches/peers/lapin/Cargo.toml
}

build_pika() {
    (install_pika "$built/pika")
}

# The others that the rows are measured against.
needed_peers() {
    case " ${rows:-$all_rows} " in
        *' process '* | *' sequential '* | *' pipelined '* | *' large '*) echo "${all_peers#ours}" ;;
        *' commands '* | *' coprocess '*) echo pika ;;
    esac
}

# Sets peers, those which can be measured.
build() {
    local peer
    say "[${SECONDS}s] building the programs"
    build_ours
    peers=ours
    for peer in $(needed_peers); do
        if "build_$peer" >&2; then peers="$peers $peer"; else say "skipping the peer $peer, see above"; fi
    done
}

# Sets command.
server_command() {
    local peer=$1 queue=$2 prefetch=$3
    case $peer in
        ours) command=("$built/ours/rpc_server" -q --queue "$queue" --prefetch "$prefetch") ;;
        c | go) command=("$built/$peer/rpc_server" "$AMQP_URL" "$queue" "$prefetch") ;;
        lapin) command=("$built/lapin/release/rpc_server" "$AMQP_URL" "$queue" "$prefetch") ;;
        pika) command=("$built/pika/bin/python" benches/peers/pika/rpc_server.py "$AMQP_URL" "$queue" "$prefetch") ;;
    esac
}

# Sets command.
client_command() {
    local peer=$1 queue=$2 procedure=$3 argument=$4 calls=$5 in_flight=$6
    case $peer in
        ours)
            command=("$built/ours/rpc_client" -q --queue "$queue" --timeout "${time_limit-30s}")
            if [ "$calls" != 1 ]; then command+=(--in-flight "$in_flight" --repeat "$calls" --stats); fi
            command+=("$procedure" ${argument:+"$argument"})
            ;;
        c | go) command=("$built/$peer/rpc_client") ;;
        c_expiring | c_alike) command=("$built/c/rpc_client") ;;
        lapin) command=("$built/lapin/release/rpc_client") ;;
        pika) command=("$built/pika/bin/python" benches/peers/pika/rpc_client.py) ;;
        broker) command=("$built/c/broker" "$AMQP_URL" "$calls" "$in_flight") ;;
    esac
    case $peer in
        ours | broker) ;;
        *) command+=("$AMQP_URL" "$queue" "$procedure" "$argument" "$calls" "$in_flight") ;;
    esac
    case $peer in
        c_expiring) command+=(30000) ;;
        c_alike) command+=(30000 36) ;;
    esac
}

# What "about" says of them in the raw numbers.
versions() {
    local peer
    note about machine processors "$(getconf _NPROCESSORS_ONLN)"
    if [ -n "${BROKER_DIR-}" ]; then note about broker version "RabbitMQ $("$here/broker.sh" ctl version 2>/dev/null)"; fi
    for peer in $peers; do
        case $peer in
            ours) note about ours version "$("$built/ours/rpc_client" --version)" ;;
            c) note about c version "librabbitmq $(pkg-config --modversion librabbitmq)" ;;
            lapin) note about lapin version "lapin $(awk '/^name = "lapin"/ { getline; gsub(/.* "|"/, ""); print }' benches/peers/lapin/Cargo.lock)" ;;
            go) note about go version "amqp091-go $(dpkg-query -W -f '${Version}' golang-github-rabbitmq-amqp091-go-dev)" ;;
            pika) note about pika version "$(sed 's/==/ /; s/ --.*//' benches/peers/pika/requirements.txt)" ;;
        esac
    done
}

# ---- measuring ----

# note ROW PEER METRIC VALUE: a line of the raw numbers, of this round.
note() {
    [ -z "$4" ] || printf '%s,%s,%s,%s,%s\n' "$1" "$2" "$3" "${round:-0}" "$4" >>"$csv"
}

# calculate EXPRESSION
calculate() {
    awk "BEGIN { printf \"%.3f\", $1 }"
}

# Sets pid. Waits until a call is answered, and as it should be.
start_server() {
    local peer=$1 queue=$2 got
    shift 2
    "${command[@]}" "$@" >"$folder/server" 2>&1 </dev/null &
    pid=$!
    servers="$servers $pid"
    got=$("$built/ours/rpc_client" -q --wait --timeout 20s --queue "$queue" fun 7) || true
    if [ "$got" != 700 ]; then
        cat "$folder/server" >&2
        fail 70 "the server of $peer answered fun(7) with '$got', not with 700"
    fi
}

stop_servers() {
    # shellcheck disable=SC2086  # a list of numbers
    if [ -n "$servers" ]; then end 5 $servers; fi
    servers=''
}

# measure ROW PEER PROCEDURE ARGUMENT CALLS IN_FLIGHT: sets rate (calls/s), p50 and p99 (µs), and of the client's whole process wall (ms),
# cpu (µs a call) and memory (KiB); of the row process also answer (ms).
measure() {
    local row=$1 peer=$2 calls=$5 wall_s cpu_s answer_s seconds options='' _
    if [ "$row" = process ]; then options=--answer; fi
    client_command "$peer" "$prefix-$row-${peer%%_*}" "$3" "$4" "$calls" "$6"
    : >"$folder/measured"
    # In the background, so that a signal to this script does not wait for it.
    "$built/measure" $options "$folder/measured" "${command[@]}" <"$folder/input" >"$folder/out" 2>"$folder/err" &
    client=$!
    if ! wait "$client"; then
        tail -n 5 "$folder/err" >&2
        fail 70 "the client of $peer failed in $row: ${command[*]}"
    fi
    client=''
    read -r wall_s cpu_s memory answer_s <"$folder/measured"
    wall=$(calculate "$wall_s * 1e3") answer=$(calculate "${answer_s:-0} * 1e3") cpu=$(calculate "$cpu_s / $calls * 1e6")
    if [ "$peer" != ours ]; then
        read -r _ seconds p50 p99 <"$folder/out"
        rate=$(calculate "$calls / $seconds")
    elif [ "$calls" != 1 ]; then
        read -r rate p50 p99 <<<"$(sed -n 's|^rpc_client: '"$calls"' calls, 0 failed, \(.*\) calls/s, p50 \(.*\) ms, p90 .* ms, p99 \(.*\) ms, .*|\1 \2 \3|p' "$folder/err")"
        [ -n "${rate-}" ] || { cat "$folder/err" >&2 && fail 70 'rpc_client --stats did not print what this script reads'; }
        p50=$(calculate "$p50 * 1e3") p99=$(calculate "$p99 * 1e3")
    fi
}

# cpu_ms PID: how long it has had a processor. Only Linux tells.
cpu_ms() {
    [ -n "$1" ] || return 0
    awk -v ticks="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) * 1000 / ticks }' "/proc/$1/stat" 2>/dev/null || true
}

# children_cpu_ms PID: the same for its children that have ended
children_cpu_ms() {
    awk -v ticks="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($14 + $15) * 1000 / ticks }' "/proc/$1/stat" 2>/dev/null || true
}

# peak_memory PID, in KiB; where only Linux tells the peak, the present.
peak_memory() {
    awk '/^VmHWM:/ { print $2 }' "/proc/$1/status" 2>/dev/null || ps -o rss= -p "$1" | tr -d ' '
}

# cost_since BEFORE PID: µs a call
cost_since() {
    local after
    after=$(cpu_ms "$2")
    if [ -n "$1" ] && [ -n "$after" ]; then calculate "($after - $1) * 1e3 / $calls"; fi
}

# Every round begins with another peer.
rotate() {
    local first=$1
    shift
    echo "$@" "$first"
}

# against_peers ROW ROUNDS PREFETCH PROCEDURE ARGUMENT CALLS IN_FLIGHT
against_peers() {
    local row=$1 rounds=$2 prefetch=$3 calls=$6 peer order=$peers round server_before broker_before
    say "[${SECONDS}s] $row: $rounds rounds of $calls calls; in turn: $peers"
    for peer in $peers; do
        server_command "$peer" "$prefix-$row-$peer" "$prefetch"
        start_server "$peer" "$prefix-$row-$peer"
        eval "server_$peer=\$pid"
    done
    case $row:"$peers " in sequential:*' c '* | pipelined:*' c '*) order="$order broker c_expiring c_alike" ;; esac
    for ((round = 1; round <= rounds; round++)); do
        for peer in $order; do
            eval "pid=\${server_$peer-}"
            server_before=$(cpu_ms "$pid") broker_before=$(cpu_ms "$broker_pid")
            measure "$row" "$peer" "$4" "$5" "$calls" "$7"
            case $row in
                process) note "$row" "$peer" wall_ms "$wall" && note "$row" "$peer" answer_ms "$answer" ;;
                sequential) note "$row" "$peer" p50_us "$p50" && note "$row" "$peer" p99_us "$p99" ;;
                large) note "$row" "$peer" p50_us "$p50" && note "$row" "$peer" client_kib "$memory" ;;
                pipelined)
                    note "$row" "$peer" per_s "$rate"
                    note "$row" "$peer" client_kib "$memory"
                    note "$row" "$peer" client_cpu_us "$cpu"
                    note "$row" "$peer" server_cpu_us "$(cost_since "$server_before" "$pid")"
                    note "$row" "$peer" broker_cpu_us "$(cost_since "$broker_before" "$broker_pid")"
                    ;;
            esac
        done
        # shellcheck disable=SC2086  # a list of words
        order=$(rotate $order)
    done
    round=$rounds
    for peer in $peers; do
        eval "pid=\$server_$peer"
        note "$row" "$peer" server_kib "$(peak_memory "$pid")"
    done
    stop_servers
}

# alone ROW PEER CALLS COMMAND...: measures a whole command that has so many lines on its standard input. Sets wall_s.
alone() {
    local row=$1 peer=$2 calls=$3 cpu_s
    shift 3
    : >"$folder/measured"
    if ! "$built/measure" "$folder/measured" "$@" >"$folder/out" 2>"$folder/err"; then
        tail -n 5 "$folder/err" >&2
        fail 70 "the command of $peer failed in $row: $*"
    fi
    read -r wall_s cpu_s memory <"$folder/measured"
    note "$row" "$peer" per_s "$(calculate "$calls / $wall_s")"
    note "$row" "$peer" cpu_us "$(calculate "$cpu_s / $calls * 1e6")"
}

# What docs/fleet.md advises for calls of less than 10 ms, so that no worker waits for its next request.
short_prefetch=8

# The last server that was started has pid; one of pika has one worker, so that there are two of them.
with_commands() {
    local rounds=$1 calls=$2 peer round before children_before
    say "[${SECONDS}s] commands: $rounds rounds of $calls calls"
    server_command ours "$prefix-commands_1-ours" 1
    start_server ours "$prefix-commands_1-ours" --workers 2 --procedure true=true --procedure fun
    for peer in $peers; do
        server_command "$peer" "$prefix-commands-$peer" "$short_prefetch"
        case $peer in
            ours) start_server ours "$prefix-commands-ours" --workers 2 --procedure true=true --procedure fun ;;
            pika)
                start_server pika "$prefix-commands-pika"
                start_server pika "$prefix-commands-pika"
                ;;
            *) continue ;;
        esac
        eval "server_$peer=\$pid"
    done
    for ((round = 1; round <= rounds; round++)); do
        for peer in ours pika; do
            case " $peers " in *" $peer "*) ;; *) continue ;; esac
            eval "pid=\$server_$peer"
            before=$(cpu_ms "$pid") children_before=$(children_cpu_ms "$pid")
            measure commands "$peer" true '' "$calls" 32
            note commands "$peer" per_s "$rate"
            if [ "$peer" = ours ] && [ -n "$before" ]; then
                note commands ours server_cpu_us "$(cost_since "$before" "$pid")"
                note commands ours child_cpu_us "$(calculate "($(children_cpu_ms "$pid") - $children_before) * 1e3 / $calls")"
            fi
        done
        measure commands_1 ours true '' "$calls" 8
        note commands prefetch-1 per_s "$rate"
        seq "$calls" >"$folder/lines"
        alone commands xargs "$calls" xargs -P2 -n1 true <"$folder/lines"
        alone commands parallel "$calls" parallel -j2 true <"$folder/lines"
    done
    stop_servers
}

# our_batch QUEUE ARGUMENT...: sets command, that of a client with so many lines on its standard input.
our_batch() {
    command=("$built/ours/rpc_client" -q --queue "$prefix-$1-ours" "${@:2}" -)
}

with_files() {
    local rounds=$1 calls=$2 round
    say "[${SECONDS}s] files: $rounds rounds of $calls calls"
    head -c 100000 "$folder/number" >"$folder/block"
    awk -v name="$folder/block" -v calls="$calls" 'BEGIN { while (calls--) print name }' >"$folder/lines"
    server_command ours "$prefix-files-ours" "$short_prefetch"
    start_server ours "$prefix-files-ours" --workers 2 --procedure sum=sha256sum --procedure fun
    our_batch files --in-flight 32 --files sum
    for ((round = 1; round <= rounds; round++)); do
        alone files ours "$calls" "${command[@]}" <"$folder/lines"
        alone files xargs "$calls" xargs -P2 -n1 sha256sum <"$folder/lines"
        alone files parallel "$calls" parallel -j2 sha256sum <"$folder/lines"
    done
    stop_servers
}

# The bound is what 8 workers need that never wait and cost nothing: each takes the next call when it has done one.
with_heavy_tail() {
    local rounds=$1 short=$2 calls=1000 round name
    say "[${SECONDS}s] tail: $rounds rounds of $calls calls of $short s, 10 of them a hundred times as long"
    # In the first half, so that it is all the work that takes the time, and not a last long call.
    awk -v calls="$calls" -v short="$short" \
        'BEGIN { for (i = 1; i <= calls; i++) print i <= calls / 2 && i % 50 == 7 ? short * 100 : short }' >"$folder/lines"
    note tail bound wall_s "$(awk '{ first = 1; for (i = 2; i <= 8; i++) if (free[i] + 0 < free[first] + 0) first = i
        free[first] += $1; if (free[first] > last) last = free[first] } END { print last }' "$folder/lines")"
    server_command ours "$prefix-tail-ours" 1
    # shellcheck disable=SC2016  # for the shell that is the procedure
    start_server ours "$prefix-tail-ours" --workers 8 --procedure pause='sh -c "read s; exec sleep $s"' --procedure fun
    for ((round = 1; round <= rounds; round++)); do
        for name in unordered ours xargs parallel parallel-k; do
            # shellcheck disable=SC2016  # for the shell that is the program
            case $name in
                unordered) our_batch tail --in-flight 64 --timeout 10m --unordered pause ;;
                ours) our_batch tail --in-flight 64 --timeout 10m pause ;;
                # The same program, which gets its argument by another way.
                xargs) command=(xargs -P8 -n1 sh -c 'exec sleep "$1"' sh) ;;
                parallel) command=(parallel -j8 sh -c "'exec sleep \"\$1\"'" sh) ;;
                parallel-k) command=(parallel -j8 -k sh -c "'exec sleep \"\$1\"'" sh) ;;
            esac
            alone tail "$name" "$calls" "${command[@]}" <"$folder/lines"
            note tail "$name" wall_s "$wall_s"
        done
    done
    stop_servers
}

# None of the files is there, so that no time goes into calls; each name has an output all the same.
with_names() {
    local names=$1 wall_s cpu_s
    say "[${SECONDS}s] names: $names"
    seq -f 'none/%.0f' "$names" >"$folder/lines"
    server_command ours "$prefix-names-ours" 1
    start_server ours "$prefix-names-ours"
    our_batch names --files --output "$folder/none-of/{/}" fun
    : >"$folder/measured"
    "$built/measure" "$folder/measured" "${command[@]}" <"$folder/lines" >/dev/null 2>&1 || true
    read -r wall_s cpu_s memory <"$folder/measured"
    note names ours client_kib "$memory"
    stop_servers
}

# The client is ours in all of them. The server of pika answers fun itself, as the program in Python does.
with_coprocesses() {
    local rounds=$1 calls=$2 name python round
    # The interpreter itself: what stands in PATH may be a script that looks for one.
    python="$(python3 -c 'import sys; print(sys.executable)') -u benches/hundredfold.py"
    say "[${SECONDS}s] coprocess: $rounds rounds of $calls calls"
    server_command ours "$prefix-coprocess-ours" 64
    start_server ours "$prefix-coprocess-ours" --procedure fun --coprocess "echo=$built/echo" --coprocess "python=$python" \
        --procedure "each=$python"
    case " $peers " in
        *' pika '*)
            server_command pika "$prefix-coprocess_pika-ours" 64
            start_server pika "$prefix-coprocess_pika-ours"
            ;;
    esac
    for ((round = 1; round <= rounds; round++)); do
        for name in fun echo python; do
            measure coprocess ours "$name" 7 "$calls" 256
            note coprocess "$name" per_s "$rate"
            if [ "$name" != python ]; then
                measure coprocess ours "$name" 7 $((calls / 10)) 1
                note coprocess "$name" p50_us "$p50"
            fi
        done
        case " $peers " in
            *' pika '*)
                measure coprocess_pika ours fun 7 "$calls" 256
                note coprocess pika per_s "$rate"
                ;;
        esac
        time_limit=0 measure coprocess ours each 7 $((calls / 100)) 8
        note coprocess each per_s "$rate"
    done
    stop_servers
}

with_workers() {
    local rounds=$1 n=$2 calls=$3 workers round
    say "[${SECONDS}s] cpu: $rounds rounds of $calls calls of fib($n), recursive, with 1 and 2 workers"
    for workers in 1 2; do
        server_command ours "$prefix-cpu$workers-ours" 1
        start_server ours "$prefix-cpu$workers-ours" --algorithm recursive --workers "$workers"
    done
    for ((round = 1; round <= rounds; round++)); do
        for workers in 1 2; do
            measure "cpu$workers" ours fib "$n" "$calls" 8
            note cpu "$workers" per_s "$rate"
        done
    done
    stop_servers
}

by_algorithm() {
    local rounds=$1 largest=$2 algorithm n calls round
    say "[${SECONDS}s] fib: $rounds rounds, n from 40 to $largest"
    for algorithm in fast-doubling iterative recursive; do
        server_command ours "$prefix-$algorithm-ours" 1
        if [ "$algorithm" != recursive ]; then command+=(--max-n "$largest"); fi
        start_server ours "$prefix-$algorithm-ours" --algorithm "$algorithm"
    done
    for ((round = 1; round <= rounds; round++)); do
        for n in 40 1000 10000 100000 1000000 10000000; do
            for algorithm in fast-doubling iterative recursive; do
                # What takes longer than seconds is left out.
                case $algorithm:$n in
                    *:40 | fast-doubling:* | iterative:1000 | iterative:10000 | iterative:100000 | iterative:1000000) ;;
                    *) continue ;;
                esac
                if [ "$n" -gt "$largest" ]; then continue; fi
                if [ "$n" -ge 100000 ] || [ "$algorithm" = recursive ]; then calls=2; else calls=100; fi
                measure "$algorithm" ours fib "$n" "$calls" 1
                note "fib-$n" "$algorithm" p50_us "$p50"
            done
        done
    done
    stop_servers
}

# Each differs in one setting from prefetch-64 with 256 calls in flight.
with_settings() {
    local rounds=$1 calls=$2 name servers_of='prefetch-64 prefetch-1 prefetch-8 prefetch-0 workers-2 quorum confirms' round
    say "[${SECONDS}s] settings: $rounds rounds of $calls calls"
    for name in $servers_of; do
        server_command ours "$prefix-$name-ours" 64
        case $name in
            prefetch-*) server_command ours "$prefix-$name-ours" "${name#prefetch-}" ;;
            workers-2) command+=(--workers 2) ;;
            quorum) command+=(--queue-type quorum) ;;
        esac
        AMQP_URL=$(url_for "$name") start_server ours "$prefix-$name-ours"
    done
    for ((round = 1; round <= rounds; round++)); do
        for name in $servers_of; do
            AMQP_URL=$(url_for "$name") measure "$name" ours ping '' "$calls" 256
            note settings "$name" per_s "$rate"
        done
        time_limit=0 measure prefetch-64 ours ping '' "$calls" 256
        note settings no-time-limit per_s "$rate"
        for name in 1 8 64 1024; do
            measure prefetch-64 ours ping '' $((name == 1 ? calls / 10 : calls)) "$name"
            note settings "in-flight-$name" per_s "$rate"
        done
        for name in prefetch-64 quorum confirms; do
            AMQP_URL=$(url_for "$name") measure "$name" ours ping '' $((calls / 10)) 1
            note settings "$name" p50_us "$p50"
        done
    done
    stop_servers
}

# Confirms are on when several brokers are listed.
url_for() {
    if [ "$1" = confirms ]; then echo "$AMQP_URL,$AMQP_URL"; else echo "$AMQP_URL"; fi
}

clean_up() {
    local code=$?
    trap - EXIT
    trap '' HUP INT TERM
    if [ -n "$client" ]; then
        # shellcheck disable=SC2046  # a list of numbers
        end 2 $(tree "$client")
    fi
    stop_servers
    rm -rf "$folder"
    exit "$code"
}

bench() {
    local row
    client='' servers='' round='' broker_pid='' folder=$(temporary_folder bench)
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    prefix=fib-rpc-bench-$$-$RANDOM
    csv=$folder/results.csv
    echo row,peer,metric,round,value >"$csv"
    : >"$folder/none"
    awk 'BEGIN { for (i = 0; i < 100000; i++) printf "7777777777"; print "" }' >"$folder/number"
    # A private node is named by BROKER_DIR.
    if [ -n "${BROKER_DIR-}" ]; then
        broker_pid=$("$here/broker.sh" pid)
    else
        say "the queues $prefix-... stay on the broker; delete them there"
    fi
    versions
    for row in ${rows:-$all_rows}; do
        case $row in large) ln -sf number "$folder/input" ;; *) ln -sf none "$folder/input" ;; esac
        case $quick:$row in
            :process) against_peers process 80 1 ping '' 1 1 ;;
            :sequential) against_peers sequential 21 1 ping '' 1000 1 ;;
            :pipelined) against_peers pipelined 15 64 ping '' 10000 256 ;;
            :large) against_peers large 21 1 fun - 10 1 ;;
            :commands) with_commands 15 2000 ;;
            :files) with_files 9 1000 ;;
            :tail) with_heavy_tail 3 0.03 ;;
            *:names) with_names 1000000 ;;
            :coprocess) with_coprocesses 15 10000 ;;
            :cpu) with_workers 9 34 200 ;;
            :fib) by_algorithm 3 10000000 ;;
            :settings) with_settings 7 10000 ;;
            yes:process) against_peers process 8 1 ping '' 1 1 ;;
            yes:sequential) against_peers sequential 3 1 ping '' 500 1 ;;
            yes:pipelined) against_peers pipelined 3 64 ping '' 5000 256 ;;
            yes:large) against_peers large 3 1 fun - 5 1 ;;
            yes:commands) with_commands 3 1000 ;;
            yes:files) with_files 3 500 ;;
            yes:tail) with_heavy_tail 1 0.03 ;;
            yes:coprocess) with_coprocesses 3 5000 ;;
            yes:cpu) with_workers 3 32 80 ;;
            yes:fib) by_algorithm 1 1000000 ;;
            yes:settings) with_settings 2 5000 ;;
        esac
    done
    results=$built/results.csv
    if [ -z "$quick$rows" ] && [ "$peers" = "$all_peers" ]; then results=benches/results.csv; fi
    cp "$csv" "$results"
    say "[${SECONDS}s] done; raw numbers: $results"
    LC_ALL=C awk -f benches/table.awk "$csv"
}

quick='' rows='' peers=''
case ${1-} in
    --with-broker)
        peers=$2
        shift 2
        ;;
esac
for word; do
    case $word in
        -h | --help)
            show_help "$here/bench.sh"
            exit
            ;;
        --quick) quick=yes ;;
        *)
            case " $all_rows " in *" $word "*) ;; *) fail 64 "unknown word: $word; usage: bench.sh [--quick] [ROW...], where a ROW is one of $all_rows" ;; esac
            rows="$rows $word"
            ;;
    esac
done
enter_root "$here"
built=$target/bench
if [ -n "$peers" ]; then
    bench
    exit
fi
need_build
case " ${rows:-$all_rows} " in *' commands '* | *' files '* | *' tail '*) need_command parallel ;; esac
build
unset BROKER_DIR
# RabbitMQ's own default, which a private node for tests does not have.
export RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD=none
# shellcheck disable=SC2086  # a list of words
exec "$here/broker.sh" run -- "$here/bench.sh" --with-broker "$peers" ${quick:+--quick} $rows
