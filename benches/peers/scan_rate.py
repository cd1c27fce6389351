"""What FAISS takes to scan a code that lies in cache, one query at a time on one processor, in nanoseconds.

    python3 benches/peers/scan_rate.py        # beside: cargo bench --bench kernels

Between an index of 1,024 codes and one of 5,120 only the scan differs: tables and the rest are the same.
"""

import os
import statistics
import time

import faiss
import numpy as np

DIM, FEW, MANY, QUERIES = 384, 1024, 5120, 500
KINDS = {"PQ192x4fs": 96, "PQ96x4fs": 48, "RaBitQfs": 48}


def micros(index, queries):
    start = time.perf_counter()
    for at in range(len(queries)):
        index.search(queries[at:at + 1], 10)
    return (time.perf_counter() - start) / len(queries) * 1e6


def main():
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    faiss.omp_set_num_threads(1)
    rows = np.random.default_rng(1).standard_normal((20_000, DIM), dtype=np.float32)
    for kind, size in KINDS.items():
        indexes = []
        for n in (FEW, MANY):
            index = faiss.index_factory(DIM, kind)
            index.train(rows)
            index.add(rows[:n])
            indexes.append(index)
        rounds = [[micros(index, rows[-QUERIES:]) for index in indexes] for _ in range(7)]
        nanos = statistics.median((many - few) / (MANY - FEW) * 1000 for few, many in rounds)
        print(f"{kind}: {nanos:.2f} ns a code, {size / nanos:.1f} GB/s", flush=True)


if __name__ == "__main__":
    main()
