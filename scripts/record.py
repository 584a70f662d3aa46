"""Records a session in three terminals, and draws it as an SVG that moves: record.py FOLDER OUTPUT.svg

The commands are typed into real shells, and the picture has what the terminals show. FOLDER has the programs, AMQP_URL
names the broker. See record.sh.
"""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from html import escape

import pyte

# Name, left, top, columns, rows. Sizes are those of a character.
PANES = [("a server", 0, 0, 45, 8), ("a second server", 47, 0, 45, 8), ("the caller", 0, 10, 92, 10)]
CHARACTER, LINE, MARGIN, BAR = 8.4, 18, 12, 26
# Seconds of the picture: between two typed characters, between two looks at what programs write, and at most for a pause
# that nobody needs to read anything.
TYPING, LOOK, IDLE = 0.05, 0.25, 0.8
# For what must come. Only a recording that fails waits this long.
PATIENCE = 120
LOGS = 150
NO_BREAK_SPACE = "\u00a0"
PROMPT = r"^(\^C)?\$$"

STYLE = """
svg{background:#11161d}
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#aeb9c5}
.r{visibility:hidden;animation:DURATIONs step-end infinite}
.s{visibility:visible}
.c{fill:#fff}
.n{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#8b98a5}
.w{font:600 15px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#ff9a56}
.p{fill:#1b222c;stroke:#39424e}
@media (prefers-reduced-motion:reduce){.r{animation:none}}
"""


class Terminal:
    """A shell in a pseudo-terminal, and what is on its screen."""

    def __init__(self, columns, rows, folder):
        self.screen = pyte.Screen(columns, rows)
        # Longer lines are cut off: a picture has no room for them.
        self.screen.reset_mode(pyte.modes.DECAWM)
        self.stream = pyte.ByteStream(self.screen)
        self.end, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {name: os.environ[name] for name in ("AMQP_URL", "HOME", "PATH")}
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "--noediting"],
            stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=environment | {"TERM": "xterm", "PS1": "$ ", "PS2": "> ", "HISTFILE": "/dev/null", "LANG": "C.UTF-8"},
        )
        os.close(terminal)


class Recording:
    """The terminals, and what they showed at which second of the picture."""

    def __init__(self, folder):
        self.terminals = [Terminal(columns, rows, folder) for _, _, _, columns, rows in PANES]
        self.now, self.caption, self.frames = 0.0, "", []
        for terminal in range(len(PANES)):
            self.see(terminal, PROMPT)

    def show(self, caption):
        self.caption = caption

    def look(self, seconds):
        """Feeds the screens with what comes within so many seconds, and notes what they show."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for end in select.select([terminal.end for terminal in self.terminals], [], [], left)[0]:
                terminal = next(terminal for terminal in self.terminals if terminal.end == end)
                terminal.stream.feed(os.read(end, 65536))
        rows = {(pane, row): text.rstrip() for pane, terminal in enumerate(self.terminals)
                for row, text in enumerate(terminal.screen.display)}
        frame = {place: text for place, text in rows.items() if text} | {"caption": self.caption}
        if not self.frames or self.frames[-1][1] != frame:
            self.frames.append((self.now, frame))

    def see(self, terminal, pattern, idle=IDLE, condition=lambda: True):
        """Waits until the last line of a terminal is like this, and the condition holds."""
        started, last = time.monotonic(), len(self.frames)
        idle_since = self.now
        while True:
            self.look(LOOK)
            if len(self.frames) > last or self.now - idle_since < idle:
                self.now += LOOK
            if len(self.frames) > last:
                idle_since, last = self.now, len(self.frames)
            lines = [line.rstrip() for line in self.terminals[terminal].screen.display]
            shown = next((line for line in reversed(lines) if line), "")
            if re.search(pattern, shown) and condition():
                return
            if time.monotonic() - started > PATIENCE:
                sys.exit(f"not in time: {pattern} in {lines}")

    def type(self, terminal, text):
        for character in text:
            os.write(self.terminals[terminal].end, character.encode())
            self.look(TYPING / 2)
            self.now += TYPING
        self.now += 0.2
        os.write(self.terminals[terminal].end, b"\n")

    def key(self, terminal, key):
        os.write(self.terminals[terminal].end, key)

    def pause(self, seconds):
        self.look(0.2)
        self.now += seconds

    def close(self):
        for terminal in self.terminals:
            # Hangs up, so that what runs in the terminal ends too.
            os.close(terminal.end)
            terminal.shell.wait()


def play(recording, folder):
    server, other, caller = range(3)

    def packed():
        return len(os.listdir(f"{folder}/gz")) if os.path.isdir(f"{folder}/gz") else 0

    recording.show("A call")
    recording.pause(0.5)
    recording.type(server, "rpc_server")
    recording.see(server, "Awaiting")
    recording.type(caller, "rpc_client fib 30")
    recording.see(caller, PROMPT)
    recording.pause(1.5)

    recording.show("Any program can be the procedure: here it is gzip, on two servers")
    recording.key(server, b"\x03")
    recording.see(server, PROMPT)
    recording.type(server, "rpc_server --procedure gz='gzip -9'")
    recording.see(server, "Awaiting")
    recording.type(other, "rpc_server -q --procedure gz='gzip -9' &")
    recording.see(other, PROMPT)
    recording.pause(1)

    recording.show(f"A batch: {LOGS} files, each sent to a server that is free")
    recording.type(caller, "rpc_client --format plain --files --output 'gz/{/}.gz' gz logs/*")
    recording.see(caller, "", condition=lambda: packed() > LOGS // 4)
    recording.show("In the middle of it, one of the servers is killed …")
    recording.type(other, "kill -9 %1; sleep 1")
    recording.see(other, PROMPT)
    recording.see(caller, PROMPT)

    recording.show("… and nothing is lost")
    recording.type(caller, "ls gz | wc -l")
    recording.see(caller, PROMPT)
    recording.type(caller, "zcat gz/* | cmp - <(cat logs/*) && echo all there")
    recording.see(caller, PROMPT)
    recording.pause(0.2)
    assert packed() == LOGS, packed()
    for terminal, shown in (other, "Killed"), (caller, "all there"):
        lines = recording.terminals[terminal].screen.display
        # Not the command: that begins with a prompt.
        assert any(shown in line and not line.startswith("$") for line in lines), lines


def intervals(frames, end):
    """{(place, text): [(from, to)…]}: when a place shows a text."""
    found, since = {}, {}
    for now, frame in [*frames, (end, {})]:
        for place, (text, start) in list(since.items()):
            if frame.get(place) != text:
                found.setdefault((place, text), []).append((start, now))
                del since[place]
        for place, text in frame.items():
            since.setdefault(place, (text, now))
    return found


def keyframes(name, shown, end):
    """An animation that shows something in these intervals."""
    steps = [] if shown[0][0] == 0 else ["0%{visibility:hidden}"]
    for start, stop in shown:
        steps.append(f"{100 * start / end:.2f}%{{visibility:visible}}")
        if stop < end:
            steps.append(f"{100 * stop / end:.2f}%{{visibility:hidden}}")
    return f"@keyframes {name}{{{''.join(steps)}to{{visibility:{'visible' if shown[-1][1] == end else 'hidden'}}}}}"


def draw(frames, end):
    width = round(92 * CHARACTER + 4 * MARGIN)
    height = round(20 * LINE + 2 * BAR + 44 - 6)
    shapes, animations, texts = [], {}, []

    def corner(pane):
        _, left, top, _, _ = PANES[pane]
        return MARGIN + (left and (width - MARGIN) / 2), 44 + (top and top * LINE + BAR - LINE)

    for pane, (name, _, _, columns, rows) in enumerate(PANES):
        x, y = corner(pane)
        wide = width - 2 * MARGIN if columns > 45 else (width - 3 * MARGIN) / 2
        shapes.append(f'<rect class="p" x="{x:g}" y="{y:g}" width="{wide:g}" height="{BAR + rows * LINE - 6:g}" rx="6"/>'
                      f'<text class="n" x="{x + 10:g}" y="{y + 16:g}">{name}</text>')
    for (place, text), shown in intervals(frames, end).items():
        name = animations.setdefault(tuple(shown), f"k{len(animations)}")
        still = " s" if shown[-1][1] == end else ""
        if place == "caption":
            texts.append(f'<text class="r w{still}" style="animation-name:{name}" x="{MARGIN}" y="29">{escape(text)}</text>')
            continue
        (pane, row), (x, y) = place, corner(place[0])
        command = " c" if re.match(r"(\^C)?\$ ", text) else ""
        # Whatever font there is, a character has its width.
        texts.append(f'<text class="r{command}{still}" style="animation-name:{name}" x="{x + 10:g}" y="{y + BAR + 10 + row * LINE:g}" '
                     f'textLength="{len(text) * CHARACTER:g}" lengthAdjust="spacingAndGlyphs">{escape(text.replace(" ", NO_BREAK_SPACE))}</text>')
    style = STYLE.replace("DURATION", f"{end:g}") + "\n".join(keyframes(name, shown, end) for shown, name in animations.items())
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        "<title>A call; gzip as a procedure on two servers; one of them is killed in the middle of a batch, and nothing is lost</title>",
        f"<style>{style}</style>", f'<rect width="{width}" height="{height}" rx="8" fill="#11161d"/>', *shapes, *texts, "</svg>", ""])


def main():
    programs, output = map(os.path.abspath, sys.argv[1:])
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/logs")
        for log in range(1, LOGS + 1):
            with open(f"{folder}/logs/{log:03}.log", "w", encoding="ascii") as file:
                file.write(f"log {log:03} of host.example\n")
                file.writelines(f"{line:06} {line * log % 9973} request {line ** 2 % 7919} done\n" for line in range(2000))
        recording = Recording(folder)
        try:
            play(recording, folder)
        finally:
            recording.close()
    end = recording.now + 4
    if not 20 <= end <= 40:
        marks = {frame["caption"]: round(now) for now, frame in reversed(recording.frames)}
        sys.exit(f"the picture would take {end:.0f} s; 20 to 40 s are wanted: {marks}")
    picture = draw(recording.frames, end)
    with open(output, "w", encoding="utf-8") as file:
        file.write(picture)
    print(f"{output}: {end:.0f} s, {len(picture) // 1000} kB")


main()
