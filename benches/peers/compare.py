"""Cellar beside its peers, on one processor: recall@10 and queries per second. See README.md.

    python3 benches/peers/compare.py DATA INDEX --peer faiss svs --out results.jsonl

DATA holds base.npy, query.npy, truth.npy and metric.txt ("l2", or "ip": cosine of normalised vectors);
INDEX is a Cellar index of base.npy, rows in order. A peer is built at first, on all processors, and
kept under DATA/peers. Then every setting of each is tried once; of those that reach a recall the
three quickest are measured again, all of them in turns, and the best median of each peer is written.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

import numpy as np

from peers import K, PEERS

CELLARDB = pathlib.Path(__file__).resolve().parents[2] / "target/release/cellardb"


def recall(found, truth):
    return float(np.mean([len(set(f[:K]) & set(t)) / K for f, t in zip(found, truth)]))


def build(name, data, metric):
    path = f"{data}/peers/{name}"
    if not os.path.exists(f"{path}/seconds"):
        os.makedirs(path)
        base = np.ascontiguousarray(np.load(f"{data}/base.npy"), dtype=np.float32)
        start = time.perf_counter()
        PEERS[name]().build(base, metric, os.path.abspath(path))
        pathlib.Path(path, "seconds").write_text(f"{time.perf_counter() - start:.1f}\n")
    return path


def ask(peer, setting, queries, truth):
    """Recall, queries per second one at a time, and handed over at once."""
    peer.set(**setting)
    peer.search(queries[:1])
    start = time.perf_counter()
    found = [peer.search(query[None])[0] for query in queries]
    single = len(queries) / (time.perf_counter() - start)
    batch = None
    if getattr(peer, "at_once", True):
        start = time.perf_counter()
        peer.search(queries)
        batch = len(queries) / (time.perf_counter() - start)
    return recall(found, truth), single, batch


def ask_cellar(args, target):
    command = [CELLARDB, "bench", args.index, f"{args.data}/query.npy", "--truth", f"{args.data}/truth.npy",
               "--threads", "1", "--json", "--recall", str(target), "--queries", str(args.queries)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = json.loads(out.splitlines()[0])
    return line["recall"], line["qps"], line["qps_batch"]


def quickest(tried, target):
    """The quickest settings that reach a recall."""
    enough = sorted((pair for pair in tried if pair[1][0] >= target), key=lambda pair: -pair[1][1])
    return [setting for setting, _ in enough[:3]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("index")
    parser.add_argument("--peer", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--target", type=float, nargs="+", default=[0.90, 0.95, 0.99])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    metric = pathlib.Path(args.data, "metric.txt").read_text().strip()
    queries = np.ascontiguousarray(np.load(f"{args.data}/query.npy")[: args.queries], dtype=np.float32)
    truth = np.load(f"{args.data}/truth.npy")[: args.queries, :K]
    paths = {name: build(name, args.data, metric) for name in args.peer}
    # From here on one processor, as for the processes that are started.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peers, best, lines = {}, [("cellar", target, {"recall": target}) for target in args.target], []
    few = slice(0, max(len(queries) // 3, 1))
    for name, path in paths.items():
        peers[name] = peer = PEERS[name]()
        peer.open(os.path.abspath(path), queries.shape[1], metric)
        tried = [(setting, ask(peer, setting, queries[few], truth[few])) for setting in peer.settings]
        for setting, (found, single, batch) in tried:
            lines.append({"peer": name, "setting": setting, "recall": found, "qps": single, "qps_batch": batch})
        best += [(name, target, setting) for target in args.target for setting in quickest(tried, target)]
    rows = [[] for _ in best]
    for _ in range(args.rounds):
        for (name, target, setting), row in zip(best, rows):
            row.append(ask_cellar(args, target) if name == "cellar" else ask(peers[name], setting, queries, truth))
    medians = {}
    for (name, target, setting), row in zip(best, rows):
        found, single, batch = (statistics.median(column) if None not in column else None for column in zip(*row))
        line = {"peer": name, "target": target, "setting": setting, "recall": found, "qps": single, "qps_batch": batch}
        lines.append(line)
        # A third of the queries may have promised a little more than all of them hold.
        if found >= target - 0.005 and single > medians.get((name, target), (0,))[0]:
            medians[name, target] = (single, batch, found, setting)
    for (name, target), (single, batch, found, setting) in medians.items():
        at_once = f"{batch:8.0f}/s" if batch else "-"
        print(f"{target:.2f} {name:8} {json.dumps(setting):34} recall {found:.4f} {single:8.0f}/s, at once {at_once}")
    pathlib.Path(args.out).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
