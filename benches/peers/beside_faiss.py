"""Cellar beside FAISS on one processor: recall@10 and queries per second, in turns, medians.

    pip install faiss-cpu numpy
    cargo build --release -p cellardb-cli
    python3 benches/peers/beside_faiss.py DIR base.npy query.npy truth.npy --metric ip

DIR is a Cellar index of base.npy, rows in order. FAISS is built once and kept in --index. It scans 4-bit
codes of two dimensions each in SIMD, in memory, and compares the best `k_factor * 10` in full.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

os.environ["OMP_NUM_THREADS"] = "1"
import faiss
import numpy as np

CELLARDB = pathlib.Path(__file__).resolve().parents[2] / "target/release/cellardb"


def build(args):
    """Trains and fills the index of FAISS on all cores, or reads it."""
    metric = faiss.METRIC_INNER_PRODUCT if args.metric == "ip" else faiss.METRIC_L2
    if os.path.exists(args.index):
        return faiss.read_index(args.index)
    base = np.load(args.base)
    faiss.omp_set_num_threads(os.cpu_count())
    start = time.perf_counter()
    index = faiss.index_factory(base.shape[1], f"IVF{args.nlist},PQ{base.shape[1] // 2}x4fs,RFlat", metric)
    index.train(base)
    index.add(base)
    print(f"faiss was built in {time.perf_counter() - start:.0f} s")
    faiss.write_index(index, args.index)
    return index


def measure(index, nprobe, k_factor, queries, truth):
    """Recall, queries per second one at a time, and handed over at once."""
    index.k_factor = k_factor
    faiss.extract_index_ivf(index).nprobe = nprobe
    index.search(queries, 10)
    start = time.perf_counter()
    found = [index.search(query[None], 10)[1][0] for query in queries]
    single = len(queries) / (time.perf_counter() - start)
    start = time.perf_counter()
    index.search(queries, 10)
    batch = len(queries) / (time.perf_counter() - start)
    return np.mean([len(np.intersect1d(f, t)) / 10 for f, t in zip(found, truth)]), single, batch


def cellar(args, recall):
    command = [CELLARDB, "bench", args.dir, args.query, "--truth", args.truth, "--threads", "1", "--json"]
    command += ["--recall", str(recall), "--queries", str(args.queries)]
    line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0])
    return line["recall"], line["qps"], line["qps_batch"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["dir", "base", "query", "truth"]:
        parser.add_argument(name)
    parser.add_argument("--metric", choices=["ip", "l2"], default="l2", help="of normalised vectors, ip is cosine")
    parser.add_argument("--index", default="base.faiss", help="where FAISS's index is kept")
    parser.add_argument("--nlist", type=int, default=4096)
    parser.add_argument("--nprobe", type=int, nargs="+", default=[64, 96, 128, 160, 192, 256])
    parser.add_argument("--k-factor", type=int, nargs="+", default=[4])
    parser.add_argument("--recall", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    index = build(args)
    faiss.omp_set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    queries = np.ascontiguousarray(np.load(args.query)[: args.queries], dtype=np.float32)
    truth = np.load(args.truth)[: args.queries, :10]
    results = {}
    for _ in range(args.rounds):
        for nprobe in args.nprobe:
            for k_factor in args.k_factor:
                row = measure(index, nprobe, k_factor, queries, truth)
                results.setdefault(f"faiss nprobe {nprobe} k_factor {k_factor}", []).append(row)
        for recall in args.recall:
            results.setdefault(f"cellar recall {recall}", []).append(cellar(args, recall))
    print(f"{'':32}{'recall@10':>10}{'queries/s':>11}{'at once':>9}")
    for name, rows in results.items():
        recall, single, batch = (statistics.median(column) for column in zip(*rows))
        print(f"{name:32}{recall:10.4f}{single:11.0f}{batch:9.0f}")


if __name__ == "__main__":
    main()
