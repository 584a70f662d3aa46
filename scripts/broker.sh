#!/usr/bin/env bash
# A RabbitMQ broker for a command, a test or a lesson: a private node, on loopback only, that touches
# nothing of the system's own broker and leaves nothing behind. `broker.sh --help` tells how to use it.
#
# A private node is environment variables, a free port group and a folder ($BROKER_DIR/fib-rpc-node):
#   settings            what a later call has to know: node name, ports
#   epmd.pid beam.pid   the node's two processes: Erlang's port mapper and the Erlang VM
#   log                 what both print, RabbitMQ's log included
#   rabbitmq.conf enabled_plugins .erlang.cookie data/ tls/
# Variables and settings: RabbitMQ's pages "Configuration", "Networking", "Runtime Tuning";
# Erlang's pages erl(1), epmd(1), kernel(6).
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

help() {
    cat <<'END'
usage: broker.sh run [--management] [--tls] -- COMMAND [ARGUMENT...]
       broker.sh guard -- COMMAND [ARGUMENT...]
       broker.sh start [--management] [--tls] | stop | kill | restart | reset | url | tls-url | tls-dir | pid | ctl ARGUMENT... | eval EXPRESSIONS | install

run      gives COMMAND a broker in AMQP_URL and exits with its exit code. The broker is, in this order:
         that of AMQP_URL if it is set; a private node if RabbitMQ is installed; what answers on
         localhost:5672; a private node, after RabbitMQ was installed with the system's package manager.
         A private node ends with COMMAND, and with it the nodes that COMMAND started by `start`.
guard    gives COMMAND no broker, and exits with its exit code; the nodes that COMMAND started by `start` end with it
start    starts a private node and prints its AMQP URL; the node outlives this script
stop     ends that node and removes its data (and its folder, if nothing else is in it)
kill     ends it without asking it, for nodes that nobody uses any more
restart  starts it again, on the same ports and with the same data, after its process died
reset    leaves it on the same ports and with no data: empties it if it runs, starts it again if not
url      prints its AMQP URL
tls-url  prints its AMQP URL for TLS, if it was started with --tls
tls-dir  prints the folder with its certificates
pid      prints the process id of its Erlang VM
ctl      rabbitmqctl on that node
eval     evaluates Erlang expressions on it, as `ctl eval` does, but in no time
install  installs RabbitMQ if it is missing, without starting the system's own broker

--management turns on the management page of a private node and prints its address on stderr.
--tls lets a private node listen for AMQP over TLS too, with certificates of its own: ca.pem; client.pem and client.key
for logging in as guest (auth_mechanism=external); for tests, expired.pem and expired.key, and other-ca.pem, which
signed nothing. `run --tls` exports AMQPS_URL and TLS_DIR; it wants AMQPS_URL set to take the broker of AMQP_URL.
BROKER_CONF has lines for the end of rabbitmq.conf, where they win; BROKER_PLUGINS more plugins, separated by commas; certificates are tls/NAME there.
BROKER_JOIN names the folder of the first node of a cluster, which the node that starts joins (see cluster.sh).
BROKER_DIR names the folder of the node that start makes and the other words use, so that there can be several;
without it, it is a folder of the user in TMPDIR. `run` makes a folder of its own and exports BROKER_DIR.
Exit codes: that of COMMAND; 64 wrong usage; 69 no broker; 129, 130, 143 after SIGHUP, SIGINT, SIGTERM.
END
}

wrong_usage() {
    fail 64 "$1; usage: broker.sh run [--management] [--tls] -- COMMAND..., or guard -- COMMAND..., start, stop, kill, restart, reset, url, tls-url, tls-dir, pid, ctl, eval, install, --help"
}

# answers_amqp HOST PORT: sends the protocol header; a broker replies with the method frame
# Connection.Start, whose first three octets are 1 0 0 (AMQP 0-9-1, sections 2.2.4 and 2.3.5).
answers_amqp() (
    exec 2>/dev/null 3<>"/dev/tcp/$1/$2" &&
        printf 'AMQP\0\0\11\1' >&3 &&
        IFS= read -r -t 2 -d '' -u 3 type && [ "$type" = $'\1' ] &&
        IFS= read -r -t 2 -d '' -u 3 channel && [ -z "$channel" ]
)

listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# ---- a private node ----

# Sets dir, the folder named by the user, and node, our folder in it.
locate_node() {
    dir=${BROKER_DIR:-${TMPDIR:-/tmp}/fib-rpc-broker-$(id -u)}
    case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
    node=$dir/fib-rpc-node
}

# Sets what start_node wrote down; false if there is no node.
load_node() {
    port='' tls_port='' cluster_epmd_port='' epmd_pid='' beam_pid=''
    [ -e "$node" ] || return 1
    [ -O "$node" ] || fail 69 "$node belongs to another user; set BROKER_DIR to a folder of your own"
    [ -f "$node/settings" ] || return 0
    # shellcheck source=/dev/null
    . "$node/settings"
    epmd_pid=$(process epmd "epmd -port $epmd_port")
    beam_pid=$(process beam "$name")
}

# process KIND WORDS: its number, if the command line is still the node's, or this script's that is about to become it;
# after a crash the number may have gone to another.
process() {
    local pid try
    pid=$(cat "$node/$1.pid" 2>/dev/null) || return 0
    for try in 1 2 3; do
        case $(ps -ww -o args= -p "$pid" 2>/dev/null) in
            *"$2"* | *"$0"*)
                echo "$pid"
                return 0
                ;;
            # It has no command line for a moment while it becomes another program.
            '['*']') sleep 0.1 ;;
            *) return 0 ;;
        esac
    done
}

need_node() {
    locate_node
    if load_node && [ -n "$port" ]; then return; fi
    fail 69 "there is no node in $dir; start one: $here/broker.sh start (BROKER_DIR names its folder)"
}

# A multiple of five and the four after it, below the ports that systems give to outgoing connections:
# two nodes that start at once share all five or none, and the first to bind, epmd, tells.
choose_ports() {
    local try
    for try in 1 2 3 4 5 6 7 8 9 10; do
        port=$((20000 + RANDOM % 2400 * 5))
        dist_port=$((port + 1)) epmd_port=$((port + 2))
        management_port=${management:+$((port + 3))} tls_port=${tls:+$((port + 4))}
        if ! { listens $port || listens $dist_port || listens $epmd_port || listens $((port + 3)) || listens $((port + 4)); }; then
            return
        fi
    done
    fail 69 "found no free ports from 20000 to 32000 in $try tries; see what listens there: ss -ltnp, or lsof -i"
}

# In a subshell: the environment of everything that belongs to the node, and of nothing else.
enter_node() {
    local variable
    for variable in ${!RABBITMQ_@} ${!ERL_@} NOTIFY_SOCKET; do unset "$variable"; done
    # The Erlang cookie is in HOME.
    # shellcheck disable=SC2031
    export HOME=$node PATH=$rabbitmq_path
    export ERL_EPMD_PORT=${cluster_epmd_port:-$epmd_port} ERL_EPMD_ADDRESS=127.0.0.1
    # For rabbitmqctl and helpers too. Only our epmd, which we can end; another would outlive the node.
    # net_ticktime: a frozen node is down for its cluster after 10 seconds or so, not after a minute.
    export ERL_AFLAGS='-kernel inet_dist_use_interface {127,0,0,1} net_ticktime 10 -start_epmd false'
    export RABBITMQ_NODENAME=$name RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
    export RABBITMQ_NODE_PORT=$port RABBITMQ_DIST_PORT=$dist_port
    export RABBITMQ_MNESIA_BASE=$node/data RABBITMQ_LOGS=- RABBITMQ_LOG_BASE=$node
    export RABBITMQ_ENABLED_PLUGINS_FILE=$node/enabled_plugins RABBITMQ_PID_FILE=$node/rabbitmq.pid
    # All four, or the files of the system's own broker are read.
    export RABBITMQ_CONFIG_FILE=$node/rabbitmq RABBITMQ_CONFIG_FILES=$node/conf.d
    export RABBITMQ_ADVANCED_CONFIG_FILE=$node/advanced.config RABBITMQ_CONF_ENV_FILE=/dev/null
    # rabbitmq-server becomes the Erlang VM, instead of waiting for it and turning SIGTERM into a slow rabbitmqctl.
    export RABBITMQ_ALLOW_INPUT=yes
    # Several nodes on a machine must not bind themselves to the same cores.
    export RABBITMQ_SCHEDULER_BIND_TYPE=u
    # Erlang's default. With RabbitMQ's, none, threads sleep between the many small reads of a start: it takes twice as long.
    export RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD=${RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD-medium}
    # rabbitmqctl has eleven ports for itself otherwise: too few for tests that run at once.
    export RABBITMQ_CTL_DIST_PORT_MIN=35672 RABBITMQ_CTL_DIST_PORT_MAX=36671
    # Without a UTF-8 locale, rabbitmqctl warns and garbles names.
    case $(locale charmap 2>/dev/null) in UTF-8) ;; *) export LC_ALL=C.UTF-8 ;; esac
    export ELIXIR_ERL_OPTIONS=+fnu
}

# spawn KIND COMMAND…: in a process group of its own, because Ctrl-C is for the command, not for the node,
# and with nothing of ours open, because callers read our output to its end.
spawn() {
    local kind=$1
    shift
    set -m
    (
        trap '' HUP
        enter_node
        cd "$node"
        # Erlang and epmd walk through all possible descriptors: with a limit of a thousand million, for long.
        ulimit -n 8192 2>/dev/null || true
        exec "$@"
    ) </dev/null >>"$node/log" 2>&1 &
    echo $! >"$node/$kind.pid"
    eval "${kind}_pid=\$!"
    set +m
    disown
}

# has_started LINES: whether the log says so after that many lines. No process is started for this: the node needs the processors.
has_started() {
    local line number=0
    while IFS= read -r line; do
        number=$((number + 1))
        case $line in
            ' completed with '* | *'Server startup complete'*) if [ $number -gt "$1" ]; then return 0; fi ;;
        esac
    done <"$node/log"
    return 1
}

# Starts the node of the settings and waits until it answers, and has said that it is complete: it listens before that, and
# rabbitmqctl would find the application not running. On failure, why tells why.
launch_node() {
    local deadline=$((SECONDS + 300)) logged
    touch "$node/log"
    logged=$(wc -l <"$node/log")
    if [ -z "$epmd_pid" ]; then spawn epmd epmd -port "$epmd_port"; fi
    # The last flag means nothing to Erlang; load_node recognizes the process by it.
    spawn beam rabbitmq-server -noinput -fib_rpc "$name"
    until has_started "$logged" && answers_amqp 127.0.0.1 "$port" &&
        { [ -z "$management_port" ] || listens "$management_port"; } && { [ -z "$tls_port" ] || listens "$tls_port"; }; do
        if ! alive "$epmd_pid"; then
            why="epmd stopped; is port $epmd_port taken?"
        elif ! alive "$beam_pid"; then
            why='its process ended'
        elif [ $SECONDS -gt $deadline ]; then
            why='it did not accept connections within 300 seconds'
        else
            sleep 0.2
            continue
        fi
        return 1
    done
}

# fail_start MESSAGE
fail_start() {
    say "$1: $why; from its log:"
    grep -m 1 -B 20 -A 8 '^BOOT FAILED' "$node/log" >&2 || tail -n 25 "$node/log" >&2
    exit 69
}

# Everything a TLS test needs. `openssl ca`, because it alone can make an expired certificate with any version.
make_certificates() {
    local name
    cat >openssl.cnf <<'END'
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
extendedKeyUsage = serverAuth
[client]
extendedKeyUsage = clientAuth
[ca]
default_ca = files
[files]
certificate = ca.pem
private_key = ca.key
serial = serial
database = index
new_certs_dir = .
default_md = sha256
policy = any_name
unique_subject = no
[any_name]
commonName = supplied
END
    : >index
    echo 1000 >serial
    for name in ca other-ca server expired client; do
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve \
            -out $name.key || return
    done
    for name in ca other-ca; do
        openssl req -config openssl.cnf -x509 -new -key $name.key -subj "/CN=fib-rpc $name" \
            -extensions authority -days 30 -out $name.pem || return
    done
    sign server localhost -extensions server -days 30 &&
        sign expired localhost -extensions server -startdate 000101000000Z -enddate 000102000000Z &&
        sign client guest -extensions client -days 30
}

# sign NAME COMMON_NAME OPTION…
sign() {
    local name=$1 common_name=$2
    shift 2
    openssl req -config openssl.cnf -new -key "$name.key" -subj "/CN=$common_name" -out "$name.csr" &&
        openssl ca -config openssl.cnf -batch -notext "$@" -in "$name.csr" -out "$name.pem"
}

# Paths are relative, because a rabbitmq.conf cannot hold every path.
tls_settings() {
    printf '%s\n' "listeners.ssl.1 = 127.0.0.1:$tls_port" \
        'ssl_options.cacertfile = tls/ca.pem' 'ssl_options.certfile = tls/server.pem' 'ssl_options.keyfile = tls/server.key' \
        'ssl_options.verify = verify_peer' 'ssl_options.fail_if_no_peer_cert = false' \
        'auth_mechanisms.1 = PLAIN' 'auth_mechanisms.2 = EXTERNAL' 'ssl_cert_login_from = common_name'
}

make_node() {
    (umask 077 && mkdir -p "$dir" && mkdir "$node") || fail 69 "could not make $node; name another folder in BROKER_DIR"
}

# Nodes of a cluster have one cookie and ask one epmd, those of the first. The others' own only hold their port groups.
# Sets peer, the first one's name.
join_peer() {
    local first=$BROKER_JOIN/fib-rpc-node
    if ! { peer=$(sed -n 's/^name=//p' "$first/settings") && cluster_epmd_port=$(sed -n 's/^epmd_port=//p' "$first/settings") &&
        cp "$first/.erlang.cookie" "$node/.erlang.cookie"; } 2>/dev/null; then
        fail 69 "there is no running node in $BROKER_JOIN to join; start one: BROKER_DIR=$BROKER_JOIN $here/broker.sh start"
    fi
}

start_node() {
    local attempt plugins
    peer='' cluster_epmd_port='' epmd_pid=''
    if [ -n "${BROKER_JOIN-}" ]; then join_peer; fi
    for attempt in 1 2 3 4 5; do
        choose_ports
        name=fib-rpc-$port@localhost
        printf '%s=%s\n' name "$name" port "$port" dist_port "$dist_port" epmd_port "$epmd_port" \
            management_port "$management_port" tls_port "$tls_port" cluster_epmd_port "$cluster_epmd_port" >"$node/settings"
        # A small disk is no reason to block publishers ("Free Disk Space Alarms").
        # RabbitMQ's advice for three nodes ("Clustering and Network Partitions"); a node alone does not care.
        printf '%s\n' 'disk_free_limit.absolute = 1MB' 'cluster_partition_handling = pause_minority' >"$node/rabbitmq.conf"
        if [ -n "$peer" ]; then
            # Newer RabbitMQs join nobody if they are not in the list themselves.
            printf 'cluster_formation.classic_config.nodes.%s\n' "1 = $peer" "2 = $name" >>"$node/rabbitmq.conf"
        fi
        # Since RabbitMQ 4.3, a quorum queue keeps for a minute what a consumer at a dead node has. Older ones know no such
        # line in rabbitmq.conf, and refuse it.
        echo '[{rabbit, [{consumer_disconnected_timeout, 5000}]}].' >"$node/advanced.config"
        plugins=${management:+rabbitmq_management}${tls:+${management:+,}rabbitmq_auth_mechanism_ssl}
        plugins=$plugins${BROKER_PLUGINS:+${plugins:+,}$BROKER_PLUGINS}
        echo "[$plugins]." >"$node/enabled_plugins"
        if [ -n "$management" ]; then
            printf 'management.tcp.%s\n' 'ip = 127.0.0.1' "port = $management_port" >>"$node/rabbitmq.conf"
        fi
        if [ -n "$tls" ]; then
            (umask 077 && mkdir "$node/tls" && cd "$node/tls" && make_certificates) >"$node/log" 2>&1 ||
                { why='openssl failed' && fail_start "could not make certificates in $node/tls"; }
            : >"$node/log"
            tls_settings >>"$node/rabbitmq.conf"
        fi
        # RabbitMQ takes the last of equal keys.
        printf '%s\n' "${BROKER_CONF-}" >>"$node/rabbitmq.conf"
        if launch_node; then return; fi
        if alive "$epmd_pid" && ! grep -qi 'eaddrinuse\|already in use\|not bind to distribution port' "$node/log"; then break; fi
        say "attempt $attempt: one of the ports $port to $((port + 4)) was taken meanwhile; trying others"
        end 0 "$epmd_pid" "$beam_pid"
        epmd_pid=''
        rm -rf "${node:?}"/*
    done
    fail_start 'the RabbitMQ node did not start'
}

# end_beam SECONDS: how long it may take to stop in good order; with 0, it is killed.
end_beam() {
    local pids
    [ -n "$beam_pid" ] || return 0
    pids=$(tree "$beam_pid")
    end "$1" "$beam_pid"
    # Its helpers outlive a killed VM for a moment.
    # shellcheck disable=SC2086  # a list of numbers
    end 0 $pids
}

# stop_node SECONDS
stop_node() {
    load_node || return 0
    end_beam "$1"
    if [ -n "$epmd_pid" ]; then end 2 "$epmd_pid"; fi
    rm -rf "${node:?}"
    rmdir "$dir" 2>/dev/null || true
}

# ---- words ----

node_ready() {
    url=amqp://127.0.0.1:$port
    if [ -n "$management_port" ]; then
        say "management page of $url: http://127.0.0.1:$management_port/ (user guest, password guest)"
    fi
}

# On every way out of run, and of a start that fails.
clean_up() {
    local code=$? job pids='' other
    trap - EXIT
    trap '' HUP INT TERM PIPE
    set +e +m
    # The command; or a process of the node, when Ctrl-C came before its number was written down.
    for job in $(jobs -p); do pids="$pids $(tree "$job")"; done
    # Or bash tells on stderr how they ended.
    disown -a
    if [ -n "$pids" ]; then
        # Ctrl-C reached the command as well: let it end in its own way first.
        # shellcheck disable=SC2086  # a list of numbers
        if [ "$code" != 130 ] || ! gone 2 $pids; then end 5 $pids; fi
    fi
    if [ -n "$run_dir" ] && [ -f "$run_dir/started" ]; then
        while IFS= read -r other; do
            if [ -e "$other" ]; then BROKER_DIR=$other "$here/broker.sh" kill & fi
        done <"$run_dir/started"
    fi
    stop_node 0
    if [ -n "$run_dir" ]; then
        wait
        # A folder that had other nodes' folders in it was not empty before.
        if [ -f "$run_dir/started" ]; then
            while IFS= read -r other; do rmdir "$other" 2>/dev/null; done <"$run_dir/started"
        fi
        rm -rf "$run_dir"
    fi
    exit "$code"
}

clean_up_at_exit() {
    run_dir=''
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# become SIGNALS COMMAND…: with these not ignored. Shells make their background commands ignore Ctrl-C, and nohup makes what
# it runs ignore the end of its terminal; old bashes cannot undo that.
become() {
    local signals=$1
    shift
    # shellcheck disable=SC2016  # Perl's variables
    if have perl; then exec perl -e '@SIG{split " ", shift} = ("DEFAULT") x 9; exec {$ARGV[0]} @ARGV; exit 127' -- "$signals" "$@"; fi
    # shellcheck disable=SC2086  # a list of names
    trap - $signals
    exec "$@"
}

run() {
    if [ "${1-}" = -- ]; then shift; fi
    case ${1-} in '' | -*) wrong_usage 'run: which command?' ;; esac
    type -P "$1" >/dev/null || fail 127 "command not found: $1"

    if [ -n "${AMQP_URL-}" ] && { [ -z "$tls" ] || [ -n "${AMQPS_URL-}" ]; }; then
        say 'using the broker of AMQP_URL'
        exec "$@"
    elif [ -n "${AMQP_URL-}" ]; then
        say 'AMQP_URL is set, AMQPS_URL is not: starting a private node that has both'
    elif [ -z "$tls" ] && ! rabbitmq_installed && answers_amqp localhost 5672; then
        say 'RabbitMQ is not installed here; using the broker that answers on localhost:5672'
        export AMQP_URL=amqp://localhost
        unset BROKER_DIR
        exec "$@"
    fi
    need_rabbitmq
    if [ -n "$tls" ]; then need_command openssl; fi
    make_run_dir
    BROKER_DIR=$run_dir
    locate_node
    make_node
    start_node
    node_ready
    export AMQP_URL=$url BROKER_DIR
    if [ -n "$tls" ]; then export AMQPS_URL TLS_DIR=$node/tls && AMQPS_URL=$(tls_url); fi
    run_command 'INT QUIT' "$@"
}

guard() {
    if [ "${1-}" = -- ]; then shift; fi
    case ${1-} in '' | -*) wrong_usage 'guard: which command?' ;; esac
    type -P "$1" >/dev/null || fail 127 "command not found: $1"
    make_run_dir
    # It is for tests, whose servers end with their terminals.
    run_command 'INT QUIT HUP' "$@"
}

# Makes the folder where the nodes that the command starts are written down.
make_run_dir() {
    node=''
    clean_up_at_exit
    run_dir=$(temporary_folder broker)
    export BROKER_RUN_DIR=$run_dir
}

# run_command SIGNALS COMMAND…: see become.
run_command() {
    local code=0
    # In the background, because traps wait for a command in the foreground.
    become "$@" <&0 &
    wait $! || code=$?
    exit "$code"
}

start() {
    locate_node
    if load_node; then
        if [ -n "$beam_pid" ] || ! [ -f "$node/beam.pid" ]; then
            fail 69 "a node is already running in $dir; stop it first: $here/broker.sh stop (or name another folder in BROKER_DIR)"
        fi
        say "removing what a dead node left in $dir"
        stop_node 0
    fi
    need_rabbitmq
    if [ -n "$tls" ]; then need_command openssl; fi
    make_node
    clean_up_at_exit
    start_node
    trap - EXIT
    node_ready
    # The nodes of a command that was killed end with its `run`.
    if [ -d "${BROKER_RUN_DIR-}" ]; then echo "$dir" >>"$BROKER_RUN_DIR/started"; fi
    echo "$url"
}

restart() {
    need_node
    # It may be on its way out.
    if [ -n "$beam_pid" ] && ! gone 5 "$beam_pid"; then
        fail 69 "the node in $dir is running (process $beam_pid); restart is for one that died"
    fi
    start_again
}

# What a node has after its start, and nothing else: no connections, the user guest, and an empty vhost.
empty='
Who = <<"broker.sh">>,
[rabbit_networking:close_connection(Pid, "the node is reset") || Pid <- rabbit_networking:connections()],
Users = [proplists:get_value(user, User) || User <- rabbit_auth_backend_internal:list_users()],
[rabbit_auth_backend_internal:delete_user(User, Who) || User <- Users, User =/= <<"guest">>],
[rabbit_vhost:delete(Vhost, Who) || Vhost <- rabbit_vhost:list_names()],
rabbit_vhost:add(<<"/">>, Who),
rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"/">>, <<".*">>, <<".*">>, <<".*">>, Who),
vm_memory_monitor:set_vm_memory_high_watermark(0.4),
[] = rabbit_alarm:get_alarms().'

# evaluate EXPRESSIONS: on the node, and prints the value of the last. By erl_call, which takes a hundredth of the time that
# rabbitmqctl takes, and comes with most packages of Erlang. Fails if the node does not answer, or answers an error: its
# version may have other functions.
evaluate() (
    enter_node
    if ! have erl_call; then exec rabbitmqctl --timeout 60 eval "$1"; fi
    reply=$(erl_call -r -sname "$name" -timeout 60 -e <<<"$1" 2>&1)
    case $reply in
        '{ok, '*'}') reply=${reply#'{ok, '} && printf '%s\n' "${reply%\}}" ;;
        *) printf '%s\n' "$reply" >&2 && exit 1 ;;
    esac
)

evaluate_expressions() {
    need_node
    [ $# = 1 ] || wrong_usage 'eval: which expressions?'
    evaluate "$1" || fail 69 "the node in $dir could not evaluate that: $1"
}

reset() {
    need_node
    if [ -n "$beam_pid" ] && evaluate "$empty" >/dev/null 2>&1; then
        node_ready
        return
    fi
    end_beam 0
    rm -rf "${node:?}/data"
    start_again
}

start_again() {
    : >"$node/log"
    if ! launch_node; then
        end 0 "$beam_pid"
        fail_start 'the RabbitMQ node did not start again'
    fi
    node_ready
}

stop() {
    locate_node
    stop_node 10
}

kill_node() {
    locate_node
    stop_node 0
}

url() {
    need_node
    echo "amqp://127.0.0.1:$port"
}

need_tls() {
    need_node
    [ -n "$tls_port" ] || fail 69 "the node in $dir has no TLS; start one that has: $here/broker.sh start --tls"
}

tls_url() {
    local ca
    need_tls
    ca=$(printf %s "$node/tls/ca.pem" | sed 's/%/%25/g; s/ /%20/g; s/#/%23/g; s/&/%26/g; s/+/%2B/g; s/,/%2C/g; s/?/%3F/g')
    echo "amqps://localhost:$tls_port?cacertfile=$ca"
}

tls_dir() {
    need_tls
    echo "$node/tls"
}

pid() {
    need_node
    [ -n "$beam_pid" ] || fail 69 "the node in $dir has died; start it again: $here/broker.sh restart"
    echo "$beam_pid"
}

ctl() {
    need_node
    enter_node
    exec rabbitmqctl "$@"
}

word=${1-} management='' tls=''
if [ $# != 0 ]; then shift; fi
case $word in
    -h | --help) help && exit ;;
    run | guard | start | stop | restart | reset | url | pid | install | ctl) ;;
    eval) word=evaluate_expressions ;;
    kill) word=kill_node ;;
    tls-url | tls-dir) word=${word/-/_} ;;
    *) wrong_usage "unknown word: '$word'" ;;
esac
if [ "$word" != ctl ] && [ "$word" != evaluate_expressions ]; then
    case ${1-} in -h | --help) help && exit ;; esac
    while :; do
        case $word:${1-} in
            run:--management | start:--management) management=yes ;;
            run:--tls | start:--tls) tls=yes ;;
            *) break ;;
        esac
        shift
    done
    if [ "$word" != run ] && [ "$word" != guard ] && [ $# != 0 ]; then wrong_usage "${word/_/-}: unknown word: '$1'"; fi
fi
if [ "$word" = install ]; then word=need_rabbitmq; fi
"$word" "$@"
