"""Cellar beside peers when memory is short: each in a process of its own, in a memory cgroup, nothing cached before.

    sudo venv/bin/python benches/peers/cold.py DATA INDEX --mib 256 --out cold.jsonl

DATA and INDEX as for compare.py, which builds the peers. The limit holds for the page cache as for the heap. What
a peer is set to is found out before, without a limit: of each depth of reranking the fewest probes that reach the
recall. With each of these it is asked every query once; the setting with the least median counts. A peer that the
limit kills, or that answers less than a tenth of the queries in the time for them, is given more memory until it
runs. Needs root, for the cgroup and to drop the caches.
"""

import argparse
import json
import mmap
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import numpy as np

from compare import CELLARDB, recall
from peers import K, PEERS, Faiss, Lance

CAPS = [256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 3072, 4096]


class FaissMapped(Faiss):
    """The index through its mapping reader, which leaves the vectors on disk, and reads the codes into memory: fast
    scan knows no lists on disk. Vectors are compared here, from base.npy, read ahead as Cellar does: its own
    refinement waits for one after the other."""

    settings = [{"nprobe": n, "k_factor": f} for f in (2, 4, 8, 16, 32) for n in (16, 32, 64, 96, 128, 192, 256, 384)]

    def open(self, path, dim, metric):
        import faiss

        faiss.omp_set_num_threads(1)
        self.owner = faiss.read_index(f"{path}/index.faiss", faiss.IO_FLAG_MMAP_IFC)
        self.index = faiss.downcast_index(faiss.downcast_index(self.owner).base_index)
        self.base = np.load(f"{path}/../../base.npy", mmap_mode="r")
        self.map, self.start = self.base._mmap, self.base.offset % mmap.ALLOCATIONGRANULARITY
        self.map.madvise(mmap.MADV_RANDOM)
        self.metric = metric

    def set(self, nprobe, k_factor):
        self.index.nprobe, self.factor = nprobe, k_factor

    def search(self, queries):
        ids = self.index.search(queries, K * self.factor)[1][0]
        ids, stride = ids[ids >= 0], self.base.strides[0]
        for at in (self.start + ids * stride).tolist():
            page = at & -mmap.PAGESIZE
            self.map.madvise(mmap.MADV_WILLNEED, page, at + stride - page)
        rows = self.base[ids]
        distances = -rows @ queries[0] if self.metric == "ip" else ((rows - queries[0]) ** 2).sum(axis=1)
        return ids[np.argsort(distances, kind="stable")[:K]][None]


class LanceFiner(Lance):
    settings = [{"nprobes": n, "refine_factor": f} for f in (1, 2, 4) for n in (32, 48, 64, 80, 96, 128, 192)]


COLD = {"faiss": FaissMapped, "lance": LanceFiner}


def read_from_disk():
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def child(args):
    """What a peer does in its own process: tries all settings warm, or asks each query once with one."""
    metric = pathlib.Path(args.data, "metric.txt").read_text().strip()
    queries = np.ascontiguousarray(np.load(f"{args.data}/query.npy", mmap_mode="r")[: args.queries], dtype=np.float32)
    truth = np.load(f"{args.data}/truth.npy", mmap_mode="r")[: args.queries, :K]
    peer = COLD[args.child]()
    peer.open(os.path.abspath(f"{args.data}/peers/{args.child}"), queries.shape[1], metric)
    for setting in [json.loads(args.setting)] if args.setting else peer.settings:
        peer.set(**setting)
        found, micros, before, begin = [], [], read_from_disk(), time.perf_counter()
        for query in queries:
            start = time.perf_counter()
            found.append(peer.search(query[None])[0])
            micros.append(1e6 * (time.perf_counter() - start))
            if time.perf_counter() - begin > args.seconds:
                break
        line = {"setting": setting, "recall": recall(found, truth), "qps": 1e6 / statistics.mean(micros),
                "p50_us": float(np.percentile(micros, 50)), "p99_us": float(np.percentile(micros, 99)),
                "read_kib": (read_from_disk() - before) / 1024 / len(found), "queries": len(found)}
        print(json.dumps(line), flush=True)


class Group:
    """A memory cgroup, of version 1 or 2."""

    def __init__(self):
        root = pathlib.Path("/sys/fs/cgroup/memory")
        self.limit, self.peak = "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        if not root.is_dir():
            root, self.limit, self.peak = pathlib.Path("/sys/fs/cgroup"), "memory.max", "memory.peak"
            (root / "cgroup.subtree_control").write_text("+memory")
        self.path = root / "cellardb-cold"

    def run(self, command, mib, seconds):
        """Lines of output of a command under a limit, with nothing cached; None if it was killed or took too long."""
        self.path.mkdir(exist_ok=True)
        try:
            (self.path / self.limit).write_text(str(mib << 20))
            os.sync()
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            joined = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', self.path, *command]
            done = subprocess.run(joined, stdout=subprocess.PIPE, text=True, timeout=2 * seconds + 20)
            if done.returncode == -signal.SIGKILL:
                return None
            done.check_returncode()
            return [json.loads(line) for line in done.stdout.splitlines()]
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.path.rmdir()

    def runs(self, args, command, mib):
        lines = self.run(command, mib, args.seconds)
        return lines and lines[0]["queries"] >= args.queries / 10


def own(args, name, setting=None, **others):
    options = {"child": name, "queries": args.queries, "seconds": args.seconds, **others}
    command = [sys.executable, __file__, args.data, args.index]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return command + (["--setting", json.dumps(setting)] if setting else [])


def candidates(args, name):
    """Of each depth of reranking the fewest probes that reach the recall with a third of the queries."""
    out = subprocess.run(own(args, name, queries=args.queries // 3), check=True, stdout=subprocess.PIPE, text=True)
    tried = [json.loads(line) for line in out.stdout.splitlines()]
    best = {}
    for line in tried:
        probes, depth = line["setting"].values()
        if line["recall"] >= args.target and probes < best.get(depth, (1 << 30,))[0]:
            best[depth] = (probes, line["setting"])
    return [setting for _, setting in best.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("index")
    parser.add_argument("--peer", nargs="*", choices=list(COLD), default=list(COLD))
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--child", choices=list(COLD), help=argparse.SUPPRESS)
    parser.add_argument("--setting", help="the only setting of a peer to measure, as JSON")
    args = parser.parse_args()
    if args.child:
        return child(args)
    group, lines = Group(), []
    bench = [CELLARDB, "bench", args.index, f"{args.data}/query.npy", "--truth", f"{args.data}/truth.npy", "--cold",
             "--json", "--queries", str(args.queries), "--seconds", str(args.seconds), "--recall", str(args.target)]
    asked = [("cellar", {"recall": args.target}, bench)]
    for name in args.peer:
        chosen = [json.loads(args.setting)] if args.setting else candidates(args, name)
        asked += [(name, setting, own(args, name, setting)) for setting in chosen]
    runs, caps = [], [args.mib, *(cap for cap in CAPS if cap > args.mib)]
    for name, setting, command in asked:
        # The first run of each does not count: below a virtual machine there is another cache, which nobody drops.
        runs.append((name, setting, next((cap for cap in caps if group.runs(args, command, cap)), None), command))
    # In turns: the disk is quicker in some minutes than in others.
    for _ in range(args.rounds):
        for name, setting, cap, command in runs:
            for line in (group.run(command, cap, args.seconds) if cap else None) or []:
                kept = {key: line[key] for key in ("recall", "qps", "p50_us", "p99_us", "read_kib", "queries")}
                lines.append({"peer": name, "setting": setting, "mib": cap, **kept})
    for name, setting, cap, _ in runs:
        rows = [line for line in lines if (line["peer"], line["setting"]) == (name, setting)]
        if not rows:
            print(f"{name:7} {json.dumps(setting):40} does not run")
            continue
        found, qps, p50, p99, kib = (statistics.median(row[key] for row in rows)
                                     for key in ("recall", "qps", "p50_us", "p99_us", "read_kib"))
        print(f"{name:7} {json.dumps(setting):40} {cap:5} MiB  recall {found:.4f} {qps:6.0f}/s  "
              f"p50 {p50 / 1e3:6.1f} ms  p99 {p99 / 1e3:6.1f} ms  {kib:7.0f} KiB a query")
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
