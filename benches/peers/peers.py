"""The other indexes: how each is built, opened, set and asked. One class for each, nothing shared."""

import os

import numpy as np

K = 10
GRAPH = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]


class Faiss:
    """IVF with 4-bit codes of two dimensions, scanned in SIMD, and the vectors to compare in full."""

    settings = [{"nprobe": n, "k_factor": f}
                for n in (4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384) for f in (4, 8, 16, 32)]

    def build(self, base, metric, path):
        import faiss

        nlist = 1 << round(np.log2(4 * np.sqrt(len(base))))
        kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
        index = faiss.index_factory(base.shape[1], f"IVF{nlist},PQ{base.shape[1] // 2}x4fs,RFlat", kind)
        index.train(base[np.random.default_rng(1).permutation(len(base))[: 64 * nlist]])
        index.add(base)
        faiss.write_index(index, f"{path}/index.faiss")

    def open(self, path, dim, metric):
        import faiss

        faiss.omp_set_num_threads(1)
        self.owner = faiss.read_index(f"{path}/index.faiss")
        self.index = faiss.downcast_index(self.owner)
        self.lists = faiss.extract_index_ivf(faiss.downcast_index(self.index.base_index))

    def set(self, nprobe, k_factor):
        self.lists.nprobe, self.index.k_factor = nprobe, k_factor

    def search(self, queries):
        return self.index.search(queries, K)[1]


class Hnswlib:
    settings = [{"ef": ef} for ef in GRAPH]

    def build(self, base, metric, path):
        import hnswlib

        index = hnswlib.Index(space=metric, dim=base.shape[1])
        index.init_index(len(base), M=16, ef_construction=200)
        index.add_items(base)
        index.save_index(f"{path}/index.bin")

    def open(self, path, dim, metric):
        import hnswlib

        self.index = hnswlib.Index(space=metric, dim=dim)
        self.index.load_index(f"{path}/index.bin")
        self.index.set_num_threads(1)

    def set(self, ef):
        self.index.set_ef(ef)

    def search(self, queries):
        return self.index.knn_query(queries, K)[0]


class Usearch:
    settings = [{"expansion": ef} for ef in GRAPH]

    def build(self, base, metric, path):
        from usearch.index import Index

        index = Index(ndim=base.shape[1], metric="ip" if metric == "ip" else "l2sq", dtype="f32")
        index.add(np.arange(len(base)), base)
        index.save(f"{path}/index.usearch")

    def open(self, path, dim, metric):
        from usearch.index import Index

        self.index = Index.restore(f"{path}/index.usearch")

    def set(self, expansion):
        self.index.expansion_search = expansion

    def search(self, queries):
        return np.atleast_2d(self.index.search(queries, K, threads=1).keys)


class Scann:
    settings = [{"leaves": leaves, "reorder": rows}
                for leaves in (8, 16, 24, 32, 40, 48, 64, 72, 96, 128, 192, 256, 384) for rows in (40, 80, 160, 320)]

    def build(self, base, metric, path):
        import scann

        kind = "dot_product" if metric == "ip" else "squared_l2"
        builder = scann.scann_ops_pybind.builder(base, K, kind)
        builder = builder.tree(num_leaves=int(2 * np.sqrt(len(base))), num_leaves_to_search=64,
                               training_sample_size=250_000)
        threshold = {"anisotropic_quantization_threshold": 0.2} if metric == "ip" else {}
        os.makedirs(f"{path}/s")
        builder.score_ah(2, **threshold).reorder(100).build().serialize(f"{path}/s")

    def open(self, path, dim, metric):
        import scann

        self.index = scann.scann_ops_pybind.load_searcher(f"{path}/s")

    def set(self, leaves, reorder):
        self.how = {"final_num_neighbors": K, "leaves_to_search": leaves, "pre_reorder_num_neighbors": reorder}

    def search(self, queries):
        if len(queries) == 1:
            return self.index.search(queries[0], **self.how)[0][None]
        return self.index.search_batched(queries, **self.how)[0]


class Svs:
    """Vamana over vectors of 4 bits a dimension, 8 more to compare again (LVQ)."""

    settings = [{"window": window} for window in GRAPH]

    def build(self, base, metric, path):
        import svs

        kind = svs.DistanceType.MIP if metric == "ip" else svs.DistanceType.L2
        svs.write_vecs(base, f"{path}/base.fvecs")
        vectors = svs.VectorDataLoader(f"{path}/base.fvecs", svs.DataType.float32, dims=base.shape[1])
        how = svs.VamanaBuildParameters(graph_max_degree=32, window_size=128, prune_to=28,
                                        alpha=0.95 if metric == "ip" else 1.2)
        index = svs.Vamana.build(how, svs.LVQLoader(vectors, primary=4, residual=8), kind, num_threads=os.cpu_count())
        index.save(f"{path}/c", f"{path}/g", f"{path}/d")
        os.remove(f"{path}/base.fvecs")

    def open(self, path, dim, metric):
        import svs

        kind = svs.DistanceType.MIP if metric == "ip" else svs.DistanceType.L2
        self.index = svs.Vamana(f"{path}/c", f"{path}/g", svs.LVQLoader(f"{path}/d"), kind, num_threads=1)

    def set(self, window):
        self.index.search_window_size = window

    def search(self, queries):
        return self.index.search(queries, K)[0]


class Lance:
    """LanceDB's IVF with RaBitQ codes, on disk."""

    settings = [{"nprobes": n, "refine_factor": f} for n in (8, 16, 32, 64, 128) for f in (1, 4, 16)]
    at_once = False

    def build(self, base, metric, path):
        import lancedb
        import pyarrow as pa

        def batches():
            for at in range(0, len(base), 50_000):
                rows = base[at:at + 50_000]
                ids = pa.array(np.arange(at, at + len(rows)))
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), base.shape[1])
                yield pa.RecordBatch.from_arrays([ids, vectors], ["id", "vector"])

        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), base.shape[1]))])
        table = lancedb.connect(path).create_table("t", batches(), schema=schema)
        table.create_index(metric="dot" if metric == "ip" else "l2", index_type="IVF_RQ",
                           num_partitions=int(np.sqrt(len(base))))

    def open(self, path, dim, metric):
        # It would warn at every query.
        os.environ.setdefault("LANCEDB_LOG", "error")
        import lancedb

        self.table = lancedb.connect(path).open_table("t")

    def set(self, nprobes, refine_factor):
        self.nprobes, self.refine = nprobes, refine_factor

    def search(self, queries):
        query = self.table.search(queries[0]).nprobes(self.nprobes).limit(K).select(["id"])
        if self.refine > 1:
            query = query.refine_factor(self.refine)
        return query.to_arrow()["id"].to_numpy()[None]


PEERS = {"faiss": Faiss, "hnswlib": Hnswlib, "usearch": Usearch, "scann": Scann, "svs": Svs, "lance": Lance}
