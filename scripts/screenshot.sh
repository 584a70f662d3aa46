#!/usr/bin/env bash
# The pictures in docs/management*.png: RabbitMQ's management page while rpc_server, slow and with --prefetch 10, answers a
# batch of rpc_client on a private node (see broker.sh). The browser is Chromium without a window, and its remote control
# the DevTools protocol over a pair of pipes, which Python speaks with what it comes with.
#
# usage: screenshot.sh [FOLDER]      (without a word: docs/ of this project)
# Exit code: 0; 69 if something is missing; 70 if the build fails; 75 if the page does not show what it should in time.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

find_chromium() {
    local name
    for name in chromium chromium-browser google-chrome; do
        if type -P "$name"; then return; fi
    done
    return 1
}

need_browser() {
    local missing='' manager
    find_chromium >/dev/null || missing=chromium
    have python3 || missing="${missing:+$missing }python3"
    if [ -z "$missing" ]; then return; fi
    manager=$(package_manager)
    # shellcheck disable=SC2086  # a list of words
    case $manager in
        apt-get) install_packages "$missing" $missing ;;
        '') fail 69 "missing: $missing; install it with the system's package manager, then run this again" ;;
        *) fail 69 "missing: $missing; type: $(install_command "$manager" $missing)" ;;
    esac
    find_chromium >/dev/null || fail 69 'Chromium was installed, but chromium, or chromium-browser, is not on PATH'
}

clean_up() {
    local code=$? pid pids=''
    trap - EXIT
    trap '' HUP INT TERM
    for pid in $browser $client $server; do pids="$pids $(tree "$pid")"; done
    # shellcheck disable=SC2086  # a list of numbers
    if [ -n "$pids" ]; then end 5 $pids; fi
    rm -rf "$folder"
    exit "$code"
}

photograph() {
    local pictures=$1 port options=()
    # Its first name has the machine's in it.
    "$here/broker.sh" ctl --quiet set_cluster_name fib-rpc
    port=$("$here/broker.sh" ctl status | sed -n 's/.* port: \([0-9]*\), protocol: http,.*/\1/p')

    browser='' client='' server='' folder=$(temporary_folder screenshot)
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    "$target/release/rpc_server" --quiet --prefetch 10 --algorithm recursive &
    server=$!
    "$target/release/rpc_client" --quiet --wait --timeout 1h --in-flight 64 --repeat 100000 fib 41 >"$folder/results" &
    client=$!

    mkfifo "$folder/commands" "$folder/answers"
    # As root it has no sandbox.
    if is_root; then options+=(--no-sandbox); fi
    # HOME, because it writes there whatever --user-data-dir says.
    HOME=$folder "$(find_chromium)" --headless "${options[@]}" --user-data-dir="$folder/profile" --remote-debugging-pipe \
        --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync \
        --hide-scrollbars --window-size=1280,1000 3<"$folder/commands" 4>"$folder/answers" >"$folder/log" 2>&1 &
    browser=$!
    python3 - "http://127.0.0.1:$port" "$folder" "$pictures" <<'END' && return
import base64, json, signal, sys, time, urllib.error, urllib.request

site, folder, pictures = sys.argv[1:]
deadline = time.monotonic() + 120
# For a browser that does not answer, and one that is gone.
signal.alarm(150)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def until(what, look):
    """What look finds, once it finds something."""
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    sys.exit(f"not in time: {what}")


def api(path):
    login = base64.b64encode(b"guest:guest").decode()
    request = urllib.request.Request(f"{site}/api/{path}", headers={"Authorization": f"Basic {login}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def is_busy():
    """Whether it was for most of the minute that the page shows; the broker counts every 5 s."""
    queue = api("queues/%2F/rpc_queue?lengths_age=60&lengths_incr=5") or {}
    counts = [queue.get(f"messages_{kind}_details", {}).get("samples", []) for kind in ("unacknowledged", "ready")]
    return all(sum(count["sample"] > 0 for count in kind) >= 8 for kind in counts)


def connection_of_the_server():
    for connection in api("connections"):
        if connection["client_properties"].get("information", "").startswith("rpc_server"):
            return connection["name"]


until("a busy queue", is_busy)
server = until("the server's connection", connection_of_the_server)

# The DevTools protocol: JSON, each message with a zero octet behind it.
commands = open(f"{folder}/commands", "wb", buffering=0)
answers = open(f"{folder}/answers", "rb")
number = 0
session = {}


def browser(method, **params):
    global number
    number += 1
    commands.write(json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0")
    while True:
        text = b""
        while not text.endswith(b"\0"):
            octet = answers.read(1)
            if not octet:
                sys.exit("the browser is gone")
            text += octet
        message = json.loads(text[:-1])
        if message.get("id") == number:
            if "error" in message:
                sys.exit(f"{method}: {message['error']}")
            return message["result"]


def js(expression):
    return browser("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


def open_section(title):
    until(f"the section {title}", lambda: js(f"$('h2:contains({json.dumps(title)})').length"))
    js(f"$('.section-hidden, .section-invisible').children('h2:contains({json.dumps(title)})').click()")


def picture(name, last):
    """The page from its top to the end of the section with this title."""
    height = js(f"$('h2:contains({json.dumps(last)})').parent().get(0).getBoundingClientRect().bottom + scrollY + 12")
    clip = {"x": 0, "y": 0, "width": 1280, "height": height, "scale": 1}
    png = browser("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
    with open(f"{pictures}/{name}.png", "wb") as file:
        file.write(base64.b64decode(png))


target = browser("Target.createTarget", url=site)["targetId"]
session["sessionId"] = browser("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
until("the login form", lambda: js("document.querySelector('input[name=password]') !== null"))
js("for (const name of ['username', 'password']) document.querySelector(`input[name=${name}]`).value = 'guest';"
   "document.querySelector('input[type=submit]').click()")
until("the page behind the login", lambda: js("document.getElementById('tabs') !== null"))
js("$.fx.off = true")  # sections open at once

js("location.hash = '#/queues/%2F/rpc_queue'")
open_section("Consumers")
until("the consumer", lambda: js("$('h2:contains(Consumers)').parent().find('td').length > 3"))
picture("management", "Consumers")

js(f"location.hash = '#/connections/' + encodeURIComponent({json.dumps(server)})")
open_section("Client properties")
picture("management-connection", "Client properties")
END
    tail -n 5 "$folder/log" >&2
    fail 75 "no pictures of http://127.0.0.1:$port, see above"
}

case ${1-} in
    -h | --help)
        show_help "$here/screenshot.sh"
        exit
        ;;
    --with-broker)
        enter_root "$here"
        photograph "$2"
        exit
        ;;
esac
if [ $# -gt 1 ]; then fail 64 'usage: screenshot.sh [FOLDER]'; fi
pictures=$(cd "${1:-$here/../docs}" 2>/dev/null && pwd) || fail 69 "there is no folder ${1-docs}; make it first"
enter_root "$here"
need_browser
"$here/broker.sh" install
build_release
# A broker that is there already may have no management page, and other queues.
unset AMQP_URL BROKER_DIR
exec "$here/broker.sh" run --management -- "$here/screenshot.sh" --with-broker "$pictures"
