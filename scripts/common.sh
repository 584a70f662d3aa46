# shellcheck shell=bash
# What the scripts share: messages, installing what a script misses, ending processes. To be sourced.
#
# Exit codes are those of the programs (sysexits): 64 wrong usage, 69 something needed is missing.

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# fail CODE MESSAGE: the message names what went wrong and what to do about it.
fail() {
    local code=$1
    shift
    say "$*"
    exit "$code"
}

# temporary_folder NAME: makes one and prints its path.
temporary_folder() {
    mktemp -d "${TMPDIR:-/tmp}/fib-rpc-$1.XXXXXX" || fail 69 "could not make a folder in ${TMPDIR:-/tmp}; name another in TMPDIR"
}

have() {
    command -v "$1" >/dev/null 2>&1
}

is_root() {
    [ "$(id -u)" = 0 ]
}

package_manager() {
    local name
    for name in apt-get brew dnf apk pacman; do
        if have "$name"; then
            echo "$name"
            return
        fi
    done
}

# install_command MANAGER PACKAGE…: what a person would type to install them.
install_command() {
    local manager=$1 command
    shift
    case $manager in
        apt-get) command="apt-get update && apt-get install -y $*" ;;
        brew) command="brew install $*" ;;
        dnf) command="dnf install -y $*" ;;
        apk) command="apk add $*" ;;
        pacman) command="pacman -S --noconfirm $*" ;;
    esac
    if is_root || [ "$manager" = brew ]; then
        echo "$command"
    elif have sudo; then
        echo "sudo sh -c '$command'"
    else
        echo "su root -c '$command'"
    fi
}

# as_root COMMAND…: fails without a question where a password would be asked for.
as_root() {
    if is_root; then "$@"; else sudo -n "$@"; fi
}

can_be_root() {
    is_root || sudo -n true 2>/dev/null
}

# Installs Debian packages and lets none of them start a service: a policy-rc.d that says 101 forbids it
# ("action forbidden by policy", invoke-rc.d(8)), in containers and under systemd alike. One that is
# already there and allows the start is set aside for the while.
# Everything happens in one root shell, so that its trap puts things back whatever happens out here.
apt_install() {
    # shellcheck disable=SC2016  # the inner shell's variables
    as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        policy=/usr/sbin/policy-rc.d aside=/usr/sbin/policy-rc.d.fib-rpc ours= log=$(mktemp)
        put_back() {
            if [ "$ours" ]; then rm -f "$policy"; fi
            if [ -e "$aside" ] || [ -L "$aside" ]; then mv "$aside" "$policy"; fi
            rm -f "$log"
        }
        trap put_back EXIT
        trap "exit 1" HUP INT TERM
        answer=0
        if [ -x "$policy" ]; then "$policy" rabbitmq-server start >"$log" 2>&1 || answer=$?; fi
        if [ "$answer" != 101 ]; then
            if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$aside" || exit; fi
            ours=yes
            printf "#!/bin/sh\nexit 101\n" >"$policy" && chmod 755 "$policy" || exit
        fi
        get() { apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -y "$@" >>"$log" 2>&1; }
        get install --no-install-recommends "$@" || { get update && get install --no-install-recommends "$@"; } ||
            { cat "$log"; exit 1; }
    ' sh "$@" </dev/null >&2
}

# install_packages WHAT PACKAGE…: with the system's package manager, or exits with the command to type.
install_packages() {
    local what=$1 manager command
    shift
    manager=$(package_manager)
    command=$(install_command "$manager" "$@")
    if [ "$manager" != brew ] && ! can_be_root; then
        fail 69 "missing: $what, and this user may not install; type: $command"
    fi
    say "missing: $what; installing with $manager: $*"
    if [ "$manager" = apt-get ]; then apt_install "$@"; else sh -c "$command" </dev/null >&2; fi ||
        fail 69 "could not install $what, see above; type: $command"
}

# What building the programs needs: the crates ring and psm have C or assembly in them.
need_build() {
    local missing='a C compiler'
    # Where rustup puts it; a shell older than that does not know.
    have cargo || PATH=$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin
    have cargo || fail 69 'cargo is missing; install Rust from https://rustup.rs, then run this again'
    if have cc; then return; fi
    case $(package_manager) in
        apt-get) install_packages "$missing" gcc libc6-dev ;;
        brew) fail 69 "missing: $missing; type: xcode-select --install" ;;
        dnf) fail 69 "missing: $missing; type: $(install_command dnf gcc)" ;;
        apk) fail 69 "missing: $missing; type: $(install_command apk gcc musl-dev)" ;;
        pacman) fail 69 "missing: $missing; type: $(install_command pacman gcc)" ;;
        *) fail 69 "missing: $missing; install one with the system's package manager, then run this again" ;;
    esac
}

# build_release: builds the programs, optimised. Sets programs, their folder.
build_release() {
    need_build
    say 'building the programs'
    cargo build --quiet --release --locked || fail 70 'the build failed, see above'
    # shellcheck disable=SC2034  # for who calls this
    programs=$target/release
}

# given_programs FOLDER USAGE: sets programs to the folder that --programs names.
given_programs() {
    [ -x "$1/rpc_server" ] || fail 64 "--programs: there is no rpc_server in '$1'; usage: $2"
    # shellcheck disable=SC2034  # for who calls this
    programs=$(cd "$1" && pwd)
}

# Debian's commands in /usr/sbin change user and folder and refuse other users; those they wrap do not.
# Homebrew's sbin is often not on PATH.
rabbitmq_path=/usr/lib/rabbitmq/bin:$PATH:/opt/homebrew/sbin:/usr/local/sbin

rabbitmq_installed() (
    # shellcheck disable=SC2030,SC2031  # in this subshell only
    PATH=$rabbitmq_path
    have rabbitmq-server && have epmd && ps -o stat= -p $$ >/dev/null 2>&1
)

need_rabbitmq() {
    if rabbitmq_installed; then return; fi
    case $(package_manager) in
        apt-get | dnf | apk) install_packages RabbitMQ rabbitmq-server procps ;;
        brew | pacman) install_packages RabbitMQ rabbitmq ;;
        *) fail 69 "RabbitMQ is not installed, and this system's package manager is unknown; install it (https://www.rabbitmq.com/docs/download); for \`run\`, a container will do; type: docker run -d -p 127.0.0.1:5672:5672 rabbitmq" ;;
    esac
    rabbitmq_installed || fail 69 'RabbitMQ was installed, but rabbitmq-server, epmd or ps is not on PATH; add its folder to PATH'
    if have systemctl && systemctl is-enabled --quiet rabbitmq-server 2>/dev/null; then
        say "the system's own broker was not started, but will be at the next boot; to prevent that, type: systemctl disable rabbitmq-server"
    fi
}

# need_command NAME: one whose package has the same name everywhere.
need_command() {
    if have "$1"; then return; fi
    case $(package_manager) in
        '') fail 69 "$1 is missing, and this system's package manager is unknown; install the command $1, then run this again" ;;
        *) install_packages "the command $1" "$1" ;;
    esac
}

# Prometheus's own tool, which says whether numbers and rules are right. Debian has it in the package of the whole server,
# a service with a database, of which only this one file is wanted: it goes into the folder of cargo's results.
need_promtool() {
    local tools=$target/tools
    # shellcheck disable=SC2031  # another shell's
    PATH=$PATH:$tools
    if have promtool; then return; fi
    case $(package_manager) in
        apt-get) ;;
        '') fail 69 "promtool is missing, and this system's package manager is unknown; install Prometheus, then run this again" ;;
        *) install_packages 'the command promtool' prometheus && return ;;
    esac
    say 'missing: the command promtool; taking it out of the package prometheus'
    (
        get() { apt-get -qq download prometheus; }
        mkdir -p "$tools" && cd "$tools" && { get 2>/dev/null || { as_root apt-get -qq update && get; }; } &&
            dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -f - --strip-components=3 ./usr/bin/promtool &&
            rm prometheus_*.deb
    ) >&2 || fail 69 'could not get promtool, see above; install the package prometheus, then run this again'
}

python_works() {
    python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 8))' 2>/dev/null
}

need_python() {
    local what='Python 3.8 or newer with its module venv'
    if python_works; then return; fi
    case $(package_manager) in
        apt-get) install_packages "$what" python3 python3-venv ;;
        '') fail 69 "missing: $what; install it, then run this again" ;;
        pacman) fail 69 "missing: $what; type: $(install_command pacman python)" ;;
        *) fail 69 "missing: $what; type: $(install_command "$(package_manager)" python3)" ;;
    esac
    python_works || fail 69 "python3 on PATH, $(command -v python3), is not $what; put one that is first on PATH"
}

# install_pika FOLDER: Python's AMQP client.
install_pika() {
    install_python "$1" benches/peers/pika/requirements.txt pika
}

# install_python FOLDER REQUIREMENTS MODULE: into a virtual environment, which is made anew when other versions are wanted, or
# when MODULE cannot be imported from it.
install_python() {
    local folder=$1 wanted=$2 module=$3
    if cmp -s "$wanted" "$folder/installed" && "$folder/bin/python" -c "import $module" 2>/dev/null; then return; fi
    need_python
    rm -rf "$folder" && python3 -m venv "$folder" && pip_install "$folder" "$wanted" && cp "$wanted" "$folder/installed"
}

# pip_install FOLDER REQUIREMENTS: into a virtual environment.
pip_install() {
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$2"
}

# A zombie is dead: in a container there may be nobody to reap it.
alive() {
    local pid
    for pid; do
        process_state "$pid"
        case $state in
            '' | Z*) ;;
            *) return 0 ;;
        esac
    done
    return 1
}

# process_state PID: sets state, as ps has it, empty if there is no such process. Linux tells it without a process started;
# waiting asks often.
process_state() {
    if [ -r /proc/self/stat ]; then
        { IFS= read -r state <"/proc/$1/stat"; } 2>/dev/null || state=''
        # The name before it may have spaces and brackets.
        state=${state##*) }
    else
        state=$(ps -o stat= -p "$1" 2>/dev/null) || state=''
    fi
}

# gone SECONDS PID…: waits until they are.
gone() {
    local deadline=$((SECONDS + $1))
    shift
    while alive "$@"; do
        if [ $SECONDS -gt $deadline ]; then return 1; fi
        sleep 0.05
    done
}

# end SECONDS PID…: politely, then not; with 0 seconds not politely. SIGCONT, because a process frozen by SIGSTOP takes
# no SIGTERM.
end() {
    local seconds=$1
    shift
    if [ "$seconds" != 0 ]; then
        kill -TERM "$@" 2>/dev/null || true
        kill -CONT "$@" 2>/dev/null || true
    fi
    if [ "$seconds" = 0 ] || ! gone "$seconds" "$@"; then
        kill -KILL "$@" 2>/dev/null || true
        gone 10 "$@" || say "could not end the processes $*"
    fi
}

# tree PID: the process and all below it.
tree() {
    ps -A -o pid= -o ppid= | awk -v top="$1" '
        { parent[$1] = $2 }
        END { for (p in parent) { for (q = p; q && q != top; q = parent[q]); if (q == top) print p } }'
}

# enter_root SCRIPTS_FOLDER: to the folder of the project, where cargo finds its settings. Sets target, the folder of cargo's
# results, which CARGO_TARGET_DIR names as seen from where the script was called.
enter_root() {
    target=${CARGO_TARGET_DIR:-}
    case $target in
        '') target=$(dirname "$1")/target ;;
        /*) ;;
        *) export CARGO_TARGET_DIR=$PWD/$target && target=$CARGO_TARGET_DIR ;;
    esac
    cd "$1/.." || exit
}

# show_help SCRIPT: the comment at its top.
show_help() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}
