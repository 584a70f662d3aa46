#!/usr/bin/env python3
"""Draws the ratios in results.csv, which scripts/bench.sh writes, as horizontal bars in an SVG.

usage: plot.py OUTPUT.svg [RESULTS.csv]
"""

import csv
import statistics
import sys
from collections import defaultdict
from html import escape
from pathlib import Path

PEERS = {"ours": "fib-rpc", "c": "C", "lapin": "Rust, lapin", "go": "Go", "pika": "Python"}

# Title, row and metric of the raw numbers, how many of their units make one of the shown, the shown
# unit, and whether more is better.
GROUPS = [
    ("One call as a whole process", "process", "wall_ms", 1, "ms", False),
    ("… until the answer is on standard output", "process", "answer_ms", 1, "ms", False),
    ("Calls one after another, median", "sequential", "p50_us", 1, "µs", False),
    ("256 calls in flight, time a call", "pipelined", "per_s", 1, "calls/s", True),
    ("1 MB there and back, median", "large", "p50_us", 1000, "ms", False),
    ("Peak memory of the client, 256 in flight", "pipelined", "client_kib", 1024, "MiB", False),
    ("Peak memory of the server, 256 in flight", "pipelined", "server_kib", 1024, "MiB", False),
]

WIDTH, LEFT, RIGHT = 640, 88, 150
BAR, STEP, GAP, TOP = 11, 16, 30, 56
# Longer bars are cut off: they would make the others too short to compare.
LONGEST = 4.0

# Without a media query these suit a light and a dark page; where one is understood, contrast is better.
STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #768089 }
  .title { font-weight: 600; font-size: 13px }
  .number { font-variant-numeric: tabular-nums }
  .other { fill: #9aa4ae }
  .ours { fill: #e8762d }
  text.us { fill: #d9661f; font-weight: 600 }
  .one { stroke: #e8762d; stroke-dasharray: 2 3 }
  @media (prefers-color-scheme: light) {
    text { fill: #424a53 } .other { fill: #afb8c1 } text.us { fill: #b04a0a }
  }
  @media (prefers-color-scheme: dark) {
    text { fill: #c9d1d9 } .other { fill: #656e78 } text.us { fill: #ff9a56 }
  }
"""


def read(path):
    """{(row, peer, metric): {round: value}}"""
    values = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["row"] != "about":
                key = line["row"], line["peer"], line["metric"]
                values[key][line["round"]] = float(line["value"])
    return values


def ratio(theirs, ours, more_is_better):
    """How many times the cost of ours, in the median of the rounds."""
    rounds = [theirs[n] / ours[n] for n in theirs if ours.get(n)]
    times = statistics.median(rounds)
    return 1 / times if more_is_better else times


def shown(number):
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def draw(values):
    scale = (WIDTH - LEFT - RIGHT) / LONGEST
    parts, y = [], TOP
    for title, row, metric, unit, unit_name, more_is_better in GROUPS:
        ours = values.get((row, "ours", metric))
        peers = [peer for peer in PEERS if (row, peer, metric) in values]
        if not ours or len(peers) < 2:
            continue
        parts.append(f'<text class="title" x="0" y="{y}">{escape(title)}</text>')
        y += 8
        bottom = y + STEP * len(peers) - (STEP - BAR)
        for peer in peers:
            theirs = values[row, peer, metric]
            times = ratio(theirs, ours, more_is_better)
            width = min(times, LONGEST) * scale
            middle = y + BAR - 2
            absolute = f"{shown(statistics.median(theirs.values()) / unit)} {unit_name}"
            number = absolute if peer == "ours" else f"{times:.2f} × · {absolute}"
            us, bar = ("us", "ours") if peer == "ours" else ("they", "other")
            end = LEFT + width
            after = max(end, LEFT + scale) + 6
            parts.append(f'<text class="{us}" x="{LEFT - 8}" y="{middle}" text-anchor="end">{PEERS[peer]}</text>')
            if times > LONGEST:
                parts.append(
                    f'<path class="{bar}" d="M{LEFT} {y}H{end - 12:.1f}l-4 {BAR}H{LEFT}z'
                    f'M{end - 8:.1f} {y}H{end:.1f}v{BAR}H{end - 12:.1f}z"/>'
                )
            else:
                parts.append(f'<rect class="{bar}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}"/>')
            parts.append(f'<text class="{us} number" x="{after:.1f}" y="{middle}">{number}</text>')
            y += STEP
        one = LEFT + scale
        parts.append(f'<path class="one" d="M{one:.1f} {bottom - STEP * len(peers) + STEP - BAR - 2}V{bottom + 2}"/>')
        y += GAP - (STEP - BAR)
    height = y - GAP + 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        "<title>fib-rpc and the same programs with other libraries</title>\n"
        f"<style>{STYLE}</style>\n"
        '<text x="0" y="14">How many times the time or memory of fib-rpc the same pair of programs takes in other</text>\n'
        '<text x="0" y="29">languages; shorter is better. Medians of runs in turn on one broker.</text>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: plot.py OUTPUT.svg [RESULTS.csv]")
    results = sys.argv[2] if len(sys.argv) == 3 else Path(__file__).parent / "results.csv"
    Path(sys.argv[1]).write_text(draw(read(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
