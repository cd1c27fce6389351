"""Draws what compare.py measured: for each recall the microseconds of a query, as one SVG.

    python3 benches/peers/plot.py text.jsonl glove.jsonl --out docs/peers.svg

Each peer is a line through its settings that no other of its settings beats; Cellar is a line through
the recalls it was asked for. Lower and further to the right is better.
"""

import argparse
import json
import math
import pathlib

COLORS = {"cellar": "#c0392b", "faiss": "#2c6fbb", "svs": "#7d3c98", "scann": "#1e8449", "hnswlib": "#b9770e",
          "usearch": "#117a8b", "lance": "#5d6d7e"}
WIDE, HIGH, LEFT, TOP, GAP = 360, 280, 52, 34, 40
RECALLS = (0.80, 0.90, 0.95, 0.98, 0.99, 0.995)
MICROSECONDS = (20, 50, 100, 200, 500, 1000, 2000, 5000)


def x_of(recall):
    """Recall by the logarithm of what is missed."""
    low, high = -math.log(1 - RECALLS[0]), -math.log(1 - RECALLS[-1])
    return LEFT + (WIDE - LEFT) * (-math.log(1 - min(recall, RECALLS[-1])) - low) / (high - low)


def y_of(micros):
    low, high = math.log(MICROSECONDS[0]), math.log(MICROSECONDS[-1])
    return TOP + (HIGH - TOP) * (1 - (math.log(min(max(micros, MICROSECONDS[0]), MICROSECONDS[-1])) - low) / (high - low))


def frontier(lines):
    """The points that no quicker one of the same peer beats, by recall."""
    points = sorted(((line["recall"], 1e6 / line["qps"]) for line in lines), key=lambda p: p[1])
    kept = []
    for recall, micros in points:
        if recall >= RECALLS[0] and (not kept or recall > kept[-1][0]):
            kept.append((recall, micros))
    return kept


def panel(name, lines, offset):
    out = [f'<g transform="translate({offset} 0)">', f'<text x="{LEFT}" y="20" font-weight="bold">{name}</text>']
    for recall in RECALLS:
        x = x_of(recall)
        out.append(f'<path d="M{x:.0f} {TOP}V{HIGH}" stroke="#ddd"/><text x="{x:.0f}" y="{HIGH + 16}" '
                   f'text-anchor="middle">{recall:g}</text>')
    for micros in MICROSECONDS:
        y = y_of(micros)
        out.append(f'<path d="M{LEFT} {y:.0f}H{WIDE}" stroke="#ddd"/><text x="{LEFT - 6}" y="{y + 4:.0f}" '
                   f'text-anchor="end">{micros}</text>')
    for peer in dict.fromkeys(line["peer"] for line in lines):
        points = frontier([line for line in lines if line["peer"] == peer])
        path = "M" + "L".join(f"{x_of(r):.1f} {y_of(m):.1f}" for r, m in points)
        width = 3 if peer == "cellar" else 1.5
        out.append(f'<path d="{path}" fill="none" stroke="{COLORS[peer]}" stroke-width="{width}"/>')
        out += [f'<circle cx="{x_of(r):.1f}" cy="{y_of(m):.1f}" r="2.5" fill="{COLORS[peer]}"/>' for r, m in points]
    return out + ["</g>"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    sets = {pathlib.Path(p).stem: [json.loads(line) for line in open(p)] for p in args.results}
    names = dict.fromkeys(line["peer"] for lines in sets.values() for line in lines)
    width, height = (WIDE + GAP) * len(sets), HIGH + 64
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="11" fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>']
    for at, (name, lines) in enumerate(sets.items()):
        out += panel(f"{name}: µs a query, by recall@10", lines, at * (WIDE + GAP))
    for at, name in enumerate(names):
        x = LEFT + 80 * at
        out.append(f'<rect x="{x}" y="{HIGH + 36}" width="12" height="4" fill="{COLORS[name]}"/>'
                   f'<text x="{x + 18}" y="{HIGH + 42}">{name}</text>')
    pathlib.Path(args.out).write_text("\n".join(out + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main()
