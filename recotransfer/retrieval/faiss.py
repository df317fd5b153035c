"""FAISS indexes, on CPU or GPU: `FaissIndex`."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.arguments import checked_class
from recotransfer.errors import ArtifactError, InputError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import TopK, check_filters, rescore
from recotransfer.retrieval.base import checked_vectors, expect_stored
from recotransfer.retrieval.exact import ExactIndex
from recotransfer.settings import PositiveInt, check_settings

Kind = Literal["flat", "hnsw", "ivfpq"]
_STRUCTURE_FROM = 1_024  # vectors below which HNSW and IVF-PQ build no structure and search exactly
_MOST_EXCLUDED = 256  # excluded items per query above which an exact search beats over-fetching
_MOST_FETCHED = 2_048  # the limit of FAISS on GPUs; beyond it an exact search is the better choice anyway


@checked_class
@dataclass(eq=False)
class FaissIndex:
    """Search by inner product with FAISS. The vectors are kept as well, to score what it finds exactly.

    Some searches fall back to the exact index: with fewer than 1,024 vectors, with a mask that allows less than 5% of
    the items, and for queries that exclude more than 256 items or for which FAISS finds fewer than k.

    Args:
        kind: "flat" (exact), "hnsw" (a graph; fastest) or "ivfpq" (inverted lists of compressed codes; smallest).
        links: HNSW: neighbours kept per vector.
        build_effort: HNSW: candidates examined for each vector added (efConstruction).
        search_effort: HNSW: candidates kept in a search (efSearch); more give higher recall and slower searches.
        lists: IVF-PQ: number of lists; None for 4 times the square root of the number of vectors at `build`.
        probes: IVF-PQ: lists searched per query (nprobe); more give higher recall and slower searches.
        code_size: IVF-PQ: bytes per vector, a divisor of d; None for the largest divisor up to d / 2.
        candidates: IVF-PQ: number of results fetched and rescored exactly, as a multiple of k.
        gpu: search on the first GPU; for flat and IVF-PQ, with faiss-gpu. Masks are then applied by over-fetching.
    """

    kind: Kind = "hnsw"
    _: KW_ONLY
    links: PositiveInt = 32
    build_effort: PositiveInt = 64
    search_effort: PositiveInt = 64
    lists: PositiveInt | None = None
    probes: PositiveInt = 16
    code_size: PositiveInt | None = None
    candidates: PositiveInt = 16
    gpu: bool = False
    _exact: ExactIndex = field(default_factory=ExactIndex, init=False, repr=False)
    _index: Any = field(default=None, init=False, repr=False)
    _resources: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.gpu and self.kind == "hnsw":
            raise InputError("FAISS has no HNSW on GPUs; choose flat or ivfpq, or gpu=False")

    def __len__(self) -> int:
        return len(self._exact)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All indexed vectors (n, d)."""
        return self._exact.vectors

    def build(self, vectors: NDArray[np.float32]) -> Self:
        """Index `vectors` (n, d), replacing any previous ones."""
        self._exact.build(vectors)
        self._index = None
        self._grow(0)
        return self

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append `vectors` (m, d); the lists and codes of IVF-PQ are not retrained."""
        before = len(self)
        self._exact.add(vectors)
        self._grow(before)

    def extended(self, vectors: NDArray[np.float32]) -> FaissIndex:
        """A copy with `vectors` (m, d) appended; this index is unchanged."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        out = FaissIndex(**values)
        before = len(self)
        out._exact = self._exact.extended(vectors)
        if self._index is not None:
            faiss = require("faiss")
            out._index = out._on_device(
                faiss.clone_index(faiss.index_gpu_to_cpu(self._index) if self.gpu else self._index)
            )

        out._grow(before)

        return out

    def _grow(self, before: int) -> None:
        """Add the vectors from position `before` on to the FAISS index."""
        vectors = self.vectors
        if self._index is None:
            if len(vectors) < (1 if self.kind == "flat" else _STRUCTURE_FROM):
                return

            self._index, before = self._on_device(self._new(vectors)), 0

        if before < len(vectors):
            self._index.add(vectors[before:])

    def _new(self, vectors: NDArray[np.float32]) -> Any:
        """An empty FAISS index of this kind, trained if the kind requires it."""
        faiss = require("faiss")
        n, d = vectors.shape
        if self.kind == "flat":
            return faiss.IndexFlatIP(d)

        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(d, self.links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = self.build_effort
            return index

        # On GPUs, FAISS supports these code sizes only.
        sizes = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 48, 56, 64, 96) if self.gpu else range(1, max(1, d // 2) + 1)
        size = self.code_size or max(m for m in sizes if m <= max(1, d // 2) and d % m == 0)
        if d % size:
            raise InputError(f"code_size is {size}; it must divide the {d} dimensions of the vectors")

        lists = min(self.lists or int(4 * n**0.5), n // 39)  # FAISS wants at least 39 training vectors per list
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(d), d, lists, size, 8 if n >= 9_984 else 6, faiss.METRIC_INNER_PRODUCT
        )
        rng = np.random.default_rng(0)
        index.train(vectors[np.sort(rng.permutation(n)[: max(64 * lists, 16_384)])])

        return index

    def _on_device(self, index: Any) -> Any:
        """The FAISS index, on the GPU if `gpu` is set."""
        if not self.gpu:
            return index

        faiss = require("faiss", extra="gpu")
        if not getattr(faiss, "get_num_gpus", int)():
            raise InputError("gpu=True, but FAISS sees no GPU; install recotransfer[gpu] on a machine that has one")

        self._resources = self._resources or faiss.StandardGpuResources()
        return faiss.index_cpu_to_gpu(self._resources, 0, index)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        exclude: sparse.csr_array | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> TopK:
        """The k best items for each query (b, d); arguments and result as in `topk.top_k`."""
        n, d = self.vectors.shape
        queries = checked_vectors(queries, d)
        check_filters((len(queries), n), k, exclude, mask)
        allowed = n if mask is None else int(np.count_nonzero(mask))
        excluded = np.zeros(len(queries), np.int64) if exclude is None else np.diff(exclude.indptr)
        ready = excluded <= _MOST_EXCLUDED  # queries that FAISS can answer
        fetch = self._fetch(k + int(excluded[ready].max(initial=0)), n, allowed)
        if self._index is None or fetch is None or not ready.any() or allowed * 20 < n:
            return self._exact.search(queries, k, exclude=exclude, mask=mask)

        found = TopK(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        rows = np.flatnonzero(ready)
        part = None if exclude is None else exclude[rows]
        best, sure = self._approximate(queries[rows], k, fetch, part, mask)
        found.positions[rows], found.scores[rows] = best
        ready[rows] = sure & (best.positions[:, -1] >= 0)
        if (again := np.flatnonzero(~ready)).size:
            part = None if exclude is None else exclude[again]
            exact = self._exact.search(queries[again], k, exclude=part, mask=mask)
            found.positions[again], found.scores[again] = exact

        return found

    def _fetch(self, wanted: int, n: int, allowed: int) -> int | None:
        """Number of results to fetch from FAISS; None if an exact search is better."""
        if self.kind == "ivfpq":
            wanted *= self.candidates

        if self.gpu and allowed < n:
            wanted = 2 * wanted * n // allowed

        if self.kind == "flat":
            wanted += 8  # spare results, so that exact rescoring can order near ties

        return min(wanted, n) if min(wanted, n) <= _MOST_FETCHED else None

    def _approximate(
        self,
        queries: NDArray[np.float32],
        k: int,
        fetch: int,
        exclude: sparse.csr_array | None,
        mask: NDArray[np.bool_] | None,
    ) -> tuple[TopK, NDArray[np.bool_]]:
        """The k best of what FAISS finds, scored exactly, and (b,) bool: rows whose result needs no exact search."""
        approximate, positions = self._index.search(queries, fetch, params=self._parameters(fetch, mask))
        best = rescore(queries, self.vectors, positions, k, exclude=exclude, mask=mask)
        if self.kind != "flat":
            return best, np.ones(len(queries), np.bool_)

        # A flat search is float32: a row is certain if its last fetched score is below the k-th by more than rounding.
        lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(self.vectors, axis=1).max()
        nearly = best.scores[:, -1] - 2.0**-22 * (queries.shape[1] + 16) * lengths
        return best, (approximate[:, -1] < nearly) | (positions[:, -1] < 0) | (fetch == len(self))

    def _parameters(self, fetch: int, mask: NDArray[np.bool_] | None) -> Any:
        """The FAISS search parameters: effort, and the mask where FAISS can apply it."""
        faiss = require("faiss")
        selector: dict[str, Any] = {}
        if mask is not None and not self.gpu:
            selector["sel"] = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))

        if self.kind == "hnsw":
            share = 1.0 if mask is None else np.count_nonzero(mask) / len(mask)  # the queue fills with masked items too
            return faiss.SearchParametersHNSW(efSearch=int(max(self.search_effort, fetch) / share), **selector)

        if self.kind == "ivfpq":
            return faiss.SearchParametersIVF(nprobe=self.probes, **selector)

        return faiss.SearchParameters(**selector) if selector else None

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Write the parameters, the vectors and the FAISS structure."""
        built = self._index is not None and self.kind != "flat"
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        writer.json(prefix, {"class": "FaissIndex", "parameters": values, "built": built})
        writer.array(f"{prefix}.vectors", self.vectors)
        if built:
            faiss = require("faiss")
            index = faiss.index_gpu_to_cpu(self._index) if self.gpu else self._index
            writer.array(f"{prefix}.faiss", faiss.serialize_index(index))

    @classmethod
    def load(cls, artifact: Artifact, prefix: str, *, gpu: bool | None = None) -> Self:
        """The saved index; `gpu` overrides the saved setting."""
        stored = artifact.json(prefix)
        expect_stored(stored, "FaissIndex", prefix)
        parameters = stored["parameters"] | ({} if gpu is None else {"gpu": gpu})
        index = cls(**parameters)
        vectors = artifact.array(f"{prefix}.vectors")
        if not stored["built"]:
            return index.build(vectors)

        faiss = require("faiss")
        index._exact.build(vectors)
        index._index = index._on_device(faiss.deserialize_index(np.array(artifact.array(f"{prefix}.faiss"))))
        if index._index.ntotal != len(vectors) or index._index.d != vectors.shape[1]:
            raise ArtifactError(f"{prefix}.faiss does not fit {prefix}.vectors; save the index again")

        return index
