#!/usr/bin/env bash
# Three RabbitMQ nodes on loopback, joined into one cluster, for a command or a test that kills some of them.
# Each is a private node of broker.sh: the first in the cluster's folder, the others in its folders 2 and 3.
# Epmd, through which they find one another, is the first one's, but lives on when that node is killed.
# `cluster.sh --help` tells how to use it.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

help() {
    cat <<'END'
usage: cluster.sh run -- COMMAND [ARGUMENT...]
       cluster.sh start | stop | kill | url | pid N | ctl N ARGUMENT... | restart N...

run      gives COMMAND a cluster of its own, which ends with it, and exits with its exit code; AMQP_URL has the URLs
         of all three nodes, separated by commas
start    starts a cluster and prints these URLs; it outlives this script
stop     ends it and removes its data
kill     ends it without asking it
url      prints its URLs
pid      prints the process id of the Erlang VM of node N: 1, 2 or 3
ctl      rabbitmqctl on node N
restart  starts node N again, on the same ports and with the same data, after its process died; of nodes that
         died together, give all: one may wait for another

CLUSTER_DIR names the folder of the cluster that start makes and the other words use, so that there can be several;
without it, it is a folder of the user in TMPDIR. `run` makes a folder of its own and exports CLUSTER_DIR.
BROKER_CONF has lines for the end of each node's rabbitmq.conf, BROKER_PLUGINS plugins, separated by commas.
Exit codes: that of COMMAND; 64 wrong usage; 69 no cluster; 129, 130, 143 after SIGHUP, SIGINT, SIGTERM.
END
}

wrong_usage() {
    fail 64 "$1; usage: cluster.sh run -- COMMAND..., or start, stop, kill, url, pid N, ctl N ARGUMENT..., restart N..., --help"
}

locate_cluster() {
    dir=${CLUSTER_DIR:-${TMPDIR:-/tmp}/fib-rpc-cluster-$(id -u)}
    case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
}

need_cluster() {
    locate_cluster
    [ -d "$dir/fib-rpc-node" ] || fail 69 "there is no cluster in $dir; start one: $here/cluster.sh start (CLUSTER_DIR names its folder)"
}

there_is_one() {
    fail 69 "there is a cluster in $dir already, or it is no folder of yours; type: $here/cluster.sh stop (or name another folder in CLUSTER_DIR)"
}

check_nodes() {
    local n
    for n; do
        case $n in 1 | 2 | 3) ;; *) wrong_usage "there is no node '$n', only 1, 2 and 3" ;; esac
    done
}

folder() {
    if [ "$1" = 1 ]; then echo "$dir"; else echo "$dir/$1"; fi
}

# broker N WORD…: becomes broker.sh on that node; in a subshell, whose process id is then the script's.
broker() {
    BROKER_DIR=$(folder "$1")
    export BROKER_DIR
    shift
    exec "$here/broker.sh" "$@"
}

# at_once WORD N…
at_once() {
    local word=$1 n pid code=0
    shift
    # In the background, because traps wait for a command in the foreground.
    for n; do
        broker "$n" "$word" &
        pids="$pids $!"
    done
    for pid in $pids; do wait "$pid" || code=$?; done
    pids=''
    return "$code"
}

# After the first, because two that start at once could each found a cluster.
start_others() {
    BROKER_JOIN=$dir at_once start 2 3 >/dev/null
    if ! (broker 1 ctl --quiet await_online_nodes 3 --timeout 300) >&2; then
        fail 69 "the nodes in $dir started, but do not form a cluster; see the files log in the folders fib-rpc-node there"
    fi
}

clean_up() {
    local code=$?
    trap - EXIT
    trap '' HUP INT TERM PIPE
    set +e
    # A broker.sh that is starting a node ends it.
    # shellcheck disable=SC2086  # a list of numbers
    if [ -n "$pids" ]; then end 10 $pids; fi
    pids=''
    if [ -n "$started_here" ]; then stop_nodes kill; fi
    exit "$code"
}

clean_up_at_exit() {
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# stop_nodes WORD: stop or kill
stop_nodes() {
    at_once "$1" 1 2 3
    rmdir "$dir/starting" "$dir" 2>/dev/null || true
}

# ---- words ----

# The first node is that of broker.sh, which also ends the others, as all that its command starts.
run() {
    if [ "${1-}" = -- ]; then shift; fi
    case ${1-} in '' | -*) wrong_usage 'run: which command?' ;; esac
    type -P "$1" >/dev/null || fail 127 "command not found: $1"
    "$here/broker.sh" install
    unset AMQP_URL BROKER_JOIN
    exec "$here/broker.sh" run -- "$here/cluster.sh" with_first_node "$@"
}

with_first_node() {
    export AMQP_URL CLUSTER_DIR=$BROKER_DIR
    locate_cluster
    clean_up_at_exit
    start_others
    AMQP_URL=$(url)
    trap - EXIT
    exec "$@"
}

start() {
    locate_cluster
    unset BROKER_JOIN
    # Of two that start at once, the one that fails must not end the nodes of the other.
    (umask 077 && mkdir -p "$dir" && mkdir "$dir/starting") 2>/dev/null || there_is_one
    if [ -e "$dir/fib-rpc-node" ]; then
        rmdir "$dir/starting"
        there_is_one
    fi
    started_here=yes
    clean_up_at_exit
    at_once start 1 >/dev/null
    start_others
    trap - EXIT
    rmdir "$dir/starting"
    url
}

stop() {
    locate_cluster
    stop_nodes stop
}

kill_nodes() {
    locate_cluster
    stop_nodes kill
}

url() {
    local n list=''
    need_cluster
    for n in 1 2 3; do list=$list${list:+,}$(broker "$n" url) || return; done
    echo "$list"
}

pid() {
    need_cluster
    (broker "$1" pid) 2>/dev/null || fail 69 "node $1 has died; start it again: $here/cluster.sh restart $1"
}

restart() {
    need_cluster
    clean_up_at_exit
    at_once restart "$@"
}

ctl() {
    local n=$1
    shift
    need_cluster
    broker "$n" ctl "$@"
}

word=${1-} pids='' started_here=''
if [ $# != 0 ]; then shift; fi
case $word:${1-} in
    -h:* | --help:* | *:-h | *:--help) help && exit ;;
esac
case $word in
    run | with_first_node) ;;
    start | stop | kill | url) if [ $# != 0 ]; then wrong_usage "$word: unknown word: '$1'"; fi ;;
    pid) if [ $# = 1 ]; then check_nodes "$1"; else wrong_usage 'pid: which node?'; fi ;;
    ctl) check_nodes "${1-}" ;;
    restart) if [ $# != 0 ]; then check_nodes "$@"; else wrong_usage 'restart: which node?'; fi ;;
    *) wrong_usage "unknown word: '$word'" ;;
esac
if [ "$word" = kill ]; then word=kill_nodes; fi
"$word" "$@"
