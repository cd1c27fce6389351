"""Time of a query against the number of rows: makes indexes of growing size, measures them, draws them.

    python3 benches/scaling.py DIR --text TEXT --rows 100000 300000 898847 --build
    python3 benches/scaling.py DIR --clustered 100000 1000000 10000000 --build
    python3 benches/scaling.py DIR --out docs/scaling.svg

TEXT holds base.npy, query.npy and metric.txt; the first rows of it are imported. The clustered set is drawn
here (L2, 96 dimensions; ten million rows want 4 GB for base.npy and 6 GB for their index). Each size has a
truth of its own. What is built stays in DIR; the last command measures all that is there in turns, on one
processor, and draws medians beside a line that grows with the square root of n. It aims at a recall of 0.95, and
higher where that is not reached: what counts is the first aim that brings it, give or take 0.002.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import time

import numpy as np

CELLARDB = pathlib.Path(__file__).resolve().parents[1] / "target/release/cellardb"
K, QUERIES, STEP = 10, 1000, 100_000
DIM, CENTRES, WIDER = 96, 100_000, 1000
WIDE, HIGH, LEFT, TOP = 460, 320, 52, 34
COLORS = {"text": "#c0392b", "clustered": "#2c6fbb"}


class Clustered:
    """A mixture of 100,000 Gaussians, whose centres lie around 1,000 wider ones, with sizes by a law of Zipf.

    The variance of direction i falls like 1 / i, as that of embeddings does: some 16 dimensions count.
    """

    def __init__(self):
        rng = np.random.default_rng(1)
        turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
        self.shape = (turn * (1 + np.arange(DIM)) ** -0.5).T.astype(np.float32)
        wider = self.spread(rng, WIDER)
        self.centres = wider[rng.integers(WIDER, size=CENTRES)] + 0.6 * self.spread(rng, CENTRES)
        share = (10 + np.arange(CENTRES)) ** -0.7
        self.sums = np.cumsum(share / share.sum())

    def spread(self, rng, rows):
        return rng.standard_normal((rows, DIM), dtype=np.float32) @ self.shape

    def draw(self, seed, rows):
        rng = np.random.default_rng(seed)
        centres = np.minimum(np.searchsorted(self.sums, rng.random(rows)), CENTRES - 1)
        return self.centres[centres] + 0.5 * self.spread(rng, rows)


def create(path, rows, dim):
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))


def clustered(path, rows):
    """The first rows are the same for every size; the queries are drawn like the rows."""
    source, base = Clustered(), create(f"{path}.base.npy", rows, DIM)
    for at in range(0, rows, STEP):
        base[at:at + STEP] = source.draw((2, at), min(STEP, rows - at))
    np.save(f"{path}.query.npy", source.draw(3, QUERIES))
    return "l2"


def first(path, text, rows):
    source = np.load(f"{text}/base.npy", mmap_mode="r")
    base = create(f"{path}.base.npy", rows, source.shape[1])
    for at in range(0, rows, STEP):
        base[at:at + STEP] = source[at:min(at + STEP, rows)]
    np.save(f"{path}.query.npy", np.load(f"{text}/query.npy", mmap_mode="r")[:QUERIES])
    return pathlib.Path(text, "metric.txt").read_text().strip()


def find_truth(path, metric):
    """Exact neighbours, a piece of the rows at a time."""
    import faiss

    base, queries = np.load(f"{path}.base.npy", mmap_mode="r"), np.load(f"{path}.query.npy")
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    ids, distances = [], []
    for at in range(0, len(base), STEP):
        found, near = faiss.knn(queries, np.ascontiguousarray(base[at:at + STEP]), K, metric=kind)
        distances.append(-found if metric == "ip" else found)
        ids.append(near + at)
    ids, distances = np.hstack(ids), np.hstack(distances)
    np.save(f"{path}.truth.npy", np.take_along_axis(ids, np.argsort(distances, axis=1, kind="stable")[:, :K], axis=1))


def peak_of(process):
    """Peak of the anonymous memory of a process while it runs, in bytes."""
    peak = 0
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.1)
    return peak


def build(path, name, rows, make):
    if os.path.exists(f"{path}.json"):
        return
    start = time.perf_counter()
    metric = make()
    made = time.perf_counter()
    find_truth(path, metric)
    dim = np.load(f"{path}.query.npy", mmap_mode="r").shape[1]
    print(f"{path}: drawn in {made - start:.0f} s, truth in {time.perf_counter() - made:.0f} s", flush=True)
    subprocess.run([CELLARDB, "create", f"{path}.cellar", "--dim", str(dim), "--metric", metric], check=True)
    command = [CELLARDB, "import", f"{path}.cellar", f"{path}.base.npy", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = peak_of(process)
    if process.returncode:
        raise SystemExit(f"import of {path}.base.npy: exit {process.returncode}")
    took = json.loads(process.stdout.read())
    disk = sum(file.stat().st_size for file in pathlib.Path(f"{path}.cellar").rglob("*") if file.is_file())
    facts = {"name": name, "rows": rows, "seconds": took["seconds"], "train_seconds": took["train_seconds"],
             "peak_anon": peak, "disk": disk}
    pathlib.Path(f"{path}.json").write_text(json.dumps(facts) + "\n")
    os.remove(f"{path}.base.npy")
    print(json.dumps(facts), flush=True)


def ask(path):
    command = [CELLARDB, "bench", f"{path}.cellar", f"{path}.query.npy", "--truth", f"{path}.truth.npy", "--json"]
    for aim in ("0.95", "0.96", "0.97", "0.98"):
        out = subprocess.run([*command, "--recall", aim], check=True, capture_output=True, text=True).stdout
        line = json.loads(out.splitlines()[0])
        if line["recall"] >= 0.948:
            break
    return line | {"aim": float(aim)}


def measure(path, rounds):
    # One processor, as for the processes that are started.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    points = [json.loads(file.read_text()) for file in path.glob("*-*.json")]
    points.sort(key=lambda point: (point["name"], point["rows"]))
    names = [path / f"{point['name']}-{point['rows']}" for point in points]
    asked = [[] for _ in points]
    for _ in range(rounds):
        for name, lines in zip(names, asked):
            lines.append(ask(name))
    for point, lines in zip(points, asked):
        point["micros"] = statistics.median(1e6 / line["qps"] for line in lines)
        point |= {key: lines[0][key] for key in ("aim", "recall", "codes", "cells", "reranked", "open_s", "open_rss")}
    return points


def draw(points):
    xs, ys = [point["rows"] for point in points], [point["micros"] for point in points]
    low_x, high_x = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)))
    low_y, high_y = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def at(rows, micros):
        x = LEFT + (WIDE - LEFT) * (math.log10(rows) - low_x) / (high_x - low_x)
        y = HIGH - (HIGH - TOP) * (math.log10(micros) - low_y) / (high_y - low_y)
        return f"{x:.1f} {y:.1f}"

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE + 40} {HIGH + 64}" font-family="sans-serif" '
           f'font-size="11" fill="#333"><rect width="{WIDE + 40}" height="{HIGH + 64}" fill="#fff"/>',
           f'<text x="{LEFT}" y="20" font-weight="bold">µs a query at recall@10 0.95, by rows</text>']
    for step in range(low_x, high_x + 1):
        x = at(10 ** step, 10 ** low_y).split()[0]
        out.append(f'<path d="M{x} {TOP}V{HIGH}" stroke="#ddd"/><text x="{x}" y="{HIGH + 16}" '
                   f'text-anchor="middle">{10 ** step:,}</text>')
    for micros in (n * 10 ** step for step in range(low_y, high_y + 1) for n in (1, 2, 5)):
        if micros <= 10 ** high_y:
            y = float(at(10 ** low_x, micros).split()[1])
            out.append(f'<path d="M{LEFT} {y:.1f}H{WIDE}" stroke="#ddd"/><text x="{LEFT - 6}" y="{y + 4:.1f}" '
                       f'text-anchor="end">{micros:g}</text>')
    for number, name in enumerate(dict.fromkeys(point["name"] for point in points)):
        line = [(point["rows"], point["micros"]) for point in points if point["name"] == name]
        color, places = COLORS[name], [at(*point) for point in line]
        root = at(line[-1][0], line[0][1] * math.sqrt(line[-1][0] / line[0][0]))
        out.append(f'<path d="M{places[0]}L{root}" fill="none" stroke="{color}" stroke-dasharray="4 4"/>')
        out.append(f'<path d="M{"L".join(places)}" fill="none" stroke="{color}" stroke-width="3"/>')
        out += ['<circle cx="{}" cy="{}" r="2.5" fill="{}"/>'.format(*place.split(), color) for place in places]
        x = LEFT + 150 * number
        out.append(f'<rect x="{x}" y="{HIGH + 36}" width="12" height="4" fill="{color}"/>'
                   f'<text x="{x + 18}" y="{HIGH + 42}">{name}, dashed: √n</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--text")
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--clustered", type=int, nargs="*", default=[])
    parser.add_argument("--build", action="store_true", help="build only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    for rows in args.rows:
        path = args.dir / f"text-{rows}"
        build(path, "text", rows, lambda: first(path, args.text, rows))
    for rows in args.clustered:
        path = args.dir / f"clustered-{rows}"
        build(path, "clustered", rows, lambda: clustered(path, rows))
    if args.build:
        return
    points = measure(args.dir, args.rounds)
    (args.dir / "scaling.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    for point in points:
        print(json.dumps(point))
    if args.out:
        args.out.write_text(draw(points))


if __name__ == "__main__":
    main()
