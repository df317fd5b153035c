"""Nearest items by inner product: exact, or through FAISS (flat, HNSW, IVF-PQ; processor or GPU).

Every index answers as `scoring.top_k` does: same order, same scores, same filters. An approximate index may miss items,
never shortens a list that could be filled, and returns the true score of what it found. Positions only; ids are the
caller's business.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.artifacts import Artifact, ArtifactWriter
from recotransfer.errors import ArtifactError, InputError, NotFittedError, require
from recotransfer.scoring import PackedItems, TopK, check_filters, pack_items, rank_candidates, rescore, top_k

Kind = Literal["flat", "hnsw", "ivfpq"]

EXACT_UP_TO = 50_000  # items that `choose_index` searches exactly without measuring
_NEAREST_EXACT = 1e13  # products of vectors, queries and dimensions up to which neighbourhoods are found exactly
_STRUCTURE_FROM = 1_024  # vectors below which HNSW and IVF-PQ build nothing and search exactly
_MOST_EXCLUDED = 256  # excluded items of one query above which over-fetching loses to an exact search
_MOST_FETCHED = 2_048  # the limit of FAISS on GPUs, and past the use of an approximate search


class Index(Protocol):
    """Searches vectors by inner product; written once, grown with `add`."""

    def __len__(self) -> int: ...

    def build(self, vectors: NDArray[np.float32]) -> Self:
        """Hold `vectors` (n, d) in place of what was there."""
        ...

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append `vectors` (m, d) at positions n and up."""
        ...

    def extended(self, vectors: NDArray[np.float32]) -> Index:
        """A copy with `vectors` (m, d) appended; this index stays as it is."""
        ...

    @property
    def vectors(self) -> NDArray[np.float32]:
        """What was built and added (n, d)."""
        ...

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        exclude: sparse.csr_array | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> TopK:
        """The k best items of each query (b, d); arguments and result as in `scoring.top_k`."""
        ...

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Store the parts `prefix` and `prefix.*`."""
        ...

    @classmethod
    def load(cls, artifact: Artifact, prefix: str) -> Self:
        """The index that `save` stored under `prefix`."""
        ...


class ExactIndex:
    """Exact search with `scoring.top_k`. Vectors are packed on the first search; a few added ones are searched apart.

    >>> index = ExactIndex().build(np.eye(3, dtype=np.float32))
    >>> index.search(np.array([[0, 2, 1]], np.float32), k=2).positions.tolist()
    [[1, 2]]
    """

    def __init__(self) -> None:
        self._rows: NDArray[np.float32] | None = None  # with room at the end, so that adding one row copies one row
        self._size = 0
        self._packed: PackedItems | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def vectors(self) -> NDArray[np.float32]:
        """What was built and added (n, d)."""
        if self._rows is None:
            raise NotFittedError("the index is empty; call build first")
        return self._rows[: self._size]

    def build(self, vectors: NDArray[np.float32]) -> Self:
        """Hold `vectors` (n, d), by reference if they are contiguous float32."""
        self._rows, self._packed = _checked(vectors, None), None
        self._size = len(self._rows)
        return self

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append `vectors` (m, d)."""
        old = self.vectors
        vectors = _checked(vectors, old.shape[1])
        size = self._size + len(vectors)
        if not len(vectors):
            return
        if self._rows is None or len(self._rows) < size:
            self._rows = np.empty((size + size // 4 + 64, old.shape[1]), np.float32)
            self._rows[: self._size] = old
        self._rows[self._size : size] = vectors
        self._size = size
        if self._packed is not None:
            self._packed = dataclasses.replace(self._packed, items=self._rows[: len(self._packed.items)])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        exclude: sparse.csr_array | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> TopK:
        """The k best items of each query (b, d), exactly; arguments and result as in `scoring.top_k`."""
        vectors, packed = self.vectors, self._packed
        n = len(vectors)
        check_filters((len(queries), n), k, exclude, mask)
        if not n:
            return top_k(queries, vectors, k)
        if packed is None or (n - len(packed.items)) * 16 > n:
            packed = self._packed = pack_items(vectors)
        m = len(packed.items)
        if m == n:
            return top_k(queries, packed, k, exclude=exclude, mask=mask)
        out = (None, None) if exclude is None else (exclude[:, :m], exclude[:, m:])
        use = (None, None) if mask is None else (mask[:m], mask[m:])
        old = top_k(queries, packed, k, exclude=out[0], mask=use[0])
        new = top_k(queries, vectors[m:], k, exclude=out[1], mask=use[1])
        positions = np.hstack([old.positions, np.where(new.positions < 0, -1, new.positions + m)])
        rows, places = np.nonzero(positions >= 0)
        scores = np.hstack([old.scores, new.scores])[rows, places]
        return rank_candidates(rows, positions[rows, places], scores, len(queries), k)

    def extended(self, vectors: NDArray[np.float32]) -> ExactIndex:
        """A copy with `vectors` (m, d) appended; this index stays as it is."""
        out = ExactIndex()
        out._rows, out._size, out._packed = self.vectors, self._size, self._packed
        out.add(vectors)
        return out

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Store the vectors."""
        writer.json(prefix, {"class": "ExactIndex"})
        writer.array(f"{prefix}.vectors", self.vectors)

    @classmethod
    def load(cls, artifact: Artifact, prefix: str) -> Self:
        """The stored index; vectors stay memory-mapped."""
        _expect(artifact.json(prefix), "ExactIndex", prefix)
        return cls().build(artifact.array(f"{prefix}.vectors"))


@dataclass(eq=False)
class FaissIndex:
    """Search through FAISS, by inner product. The vectors are kept beside it, to score what it finds exactly.

    Small or selective searches are exact ones: below 1,024 vectors, where a mask leaves under 5% of the items, and for
    rows with more than 256 exclusions or with fewer results than exist.

    Args:
        kind: "flat" (exact), "hnsw" (a graph; quickest), "ivfpq" (compressed lists; smallest).
        links: HNSW: neighbours kept per vector.
        build_effort: HNSW: candidates looked at for each vector added.
        search_effort: HNSW: candidates kept in a search. The trade of recall for time.
        lists: IVF-PQ: number of lists; None for 4 times the square root of the vectors built.
        probes: IVF-PQ: lists looked into. The trade of recall for time.
        code_size: IVF-PQ: bytes per vector, a divisor of its dimensions; None for the largest up to half of them.
        candidates: IVF-PQ: how many times k are taken from the codes and scored exactly.
        gpu: search on the first GPU; flat and IVF-PQ, with faiss-gpu. Masks are then met by over-fetching.
    """

    kind: Kind = "hnsw"
    _: KW_ONLY
    links: int = 32
    build_effort: int = 64
    search_effort: int = 64
    lists: int | None = None
    probes: int = 16
    code_size: int | None = None
    candidates: int = 16
    gpu: bool = False
    _exact: ExactIndex = field(default_factory=ExactIndex, init=False, repr=False)
    _index: Any = field(default=None, init=False, repr=False)
    _resources: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind is {self.kind!r}; choose one of {', '.join(get_args(Kind))}")
        if self.gpu and self.kind == "hnsw":
            raise InputError("FAISS has no HNSW on GPUs; choose flat or ivfpq, or gpu=False")

    def __len__(self) -> int:
        return len(self._exact)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """What was built and added (n, d)."""
        return self._exact.vectors

    def build(self, vectors: NDArray[np.float32]) -> Self:
        """Hold and index `vectors` (n, d)."""
        self._exact.build(vectors)
        self._index = None
        self._grow(0)
        return self

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append `vectors` (m, d); lists and codes stay as they were trained."""
        before = len(self)
        self._exact.add(vectors)
        self._grow(before)

    def extended(self, vectors: NDArray[np.float32]) -> FaissIndex:
        """A copy with `vectors` (m, d) appended; this index stays as it is."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        out = FaissIndex(**values)
        before = len(self)
        out._exact = self._exact.extended(vectors)
        if self._index is not None:
            faiss = require("faiss", extra="cpu")
            out._index = out._on_device(
                faiss.clone_index(faiss.index_gpu_to_cpu(self._index) if self.gpu else self._index)
            )
        out._grow(before)
        return out

    def _grow(self, before: int) -> None:
        """Index what came after the first `before` vectors."""
        vectors = self.vectors
        if self._index is None:
            if len(vectors) < (1 if self.kind == "flat" else _STRUCTURE_FROM):
                return
            self._index, before = self._on_device(self._new(vectors)), 0
        if before < len(vectors):
            self._index.add(vectors[before:])

    def _new(self, vectors: NDArray[np.float32]) -> Any:
        """An empty FAISS index, trained where its kind needs it."""
        faiss = require("faiss", extra="cpu")
        n, d = vectors.shape
        if self.kind == "flat":
            return faiss.IndexFlatIP(d)
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(d, self.links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = self.build_effort
            return index
        sizes = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 48, 56, 64, 96) if self.gpu else range(1, max(1, d // 2) + 1)
        size = self.code_size or max(m for m in sizes if m <= max(1, d // 2) and d % m == 0)
        if d % size:
            raise InputError(f"code_size is {size}; it must divide the {d} dimensions of the vectors")
        lists = min(self.lists or int(4 * n**0.5), n // 39)  # FAISS asks for 39 vectors to train a list
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(d), d, lists, size, 8 if n >= 9_984 else 6, faiss.METRIC_INNER_PRODUCT
        )
        rng = np.random.default_rng(0)
        index.train(vectors[np.sort(rng.permutation(n)[: max(64 * lists, 16_384)])])
        return index

    def _on_device(self, index: Any) -> Any:
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
        """The k best items of each query (b, d); arguments and result as in `scoring.top_k`."""
        n, d = self.vectors.shape
        queries = _checked(queries, d)
        check_filters((len(queries), n), k, exclude, mask)
        allowed = n if mask is None else int(np.count_nonzero(mask))
        out = np.zeros(len(queries), np.int64) if exclude is None else np.diff(exclude.indptr)
        ready = out <= _MOST_EXCLUDED
        fetch = self._fetch(k + int(out[ready].max(initial=0)), n, allowed)
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
        """How many results to ask FAISS for; None where an exact search is the better way."""
        if self.kind == "ivfpq":
            wanted *= self.candidates
        if self.gpu and allowed < n:
            wanted = 2 * wanted * n // allowed
        if self.kind == "flat":
            wanted += 8  # room to settle near ties
        return min(wanted, n) if min(wanted, n) <= _MOST_FETCHED else None

    def _approximate(
        self,
        queries: NDArray[np.float32],
        k: int,
        fetch: int,
        exclude: sparse.csr_array | None,
        mask: NDArray[np.bool_] | None,
    ) -> tuple[TopK, NDArray[np.bool_]]:
        """The best k of what FAISS finds, scored exactly; and for which rows this answer may stand."""
        approximate, positions = self._index.search(queries, fetch, params=self._parameters(fetch, mask))
        best = rescore(queries, self.vectors, positions, k, exclude=exclude, mask=mask)
        if self.kind != "flat":
            return best, np.ones(len(queries), np.bool_)
        lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(self.vectors, axis=1).max()
        nearly = best.scores[:, -1] - 2.0**-22 * (queries.shape[1] + 16) * lengths
        return best, (approximate[:, -1] < nearly) | (positions[:, -1] < 0) | (fetch == len(self))

    def _parameters(self, fetch: int, mask: NDArray[np.bool_] | None) -> Any:
        faiss = require("faiss", extra="cpu")
        words: dict[str, Any] = {}
        if mask is not None and not self.gpu:
            words["sel"] = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        if self.kind == "hnsw":
            share = 1.0 if mask is None else np.count_nonzero(mask) / len(mask)  # forbidden items fill the queue too
            return faiss.SearchParametersHNSW(efSearch=int(max(self.search_effort, fetch) / share), **words)
        if self.kind == "ivfpq":
            return faiss.SearchParametersIVF(nprobe=self.probes, **words)
        return faiss.SearchParameters(**words) if words else None

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Store parameters, vectors and the FAISS structure."""
        built = self._index is not None and self.kind != "flat"
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        writer.json(prefix, {"class": "FaissIndex", "parameters": values, "built": built})
        writer.array(f"{prefix}.vectors", self.vectors)
        if built:
            faiss = require("faiss", extra="cpu")
            index = faiss.index_gpu_to_cpu(self._index) if self.gpu else self._index
            writer.array(f"{prefix}.faiss", faiss.serialize_index(index))

    @classmethod
    def load(cls, artifact: Artifact, prefix: str, *, gpu: bool | None = None) -> Self:
        """The stored index; `gpu` overrides where it searches."""
        stored = artifact.json(prefix)
        _expect(stored, "FaissIndex", prefix)
        parameters = stored["parameters"] | ({} if gpu is None else {"gpu": gpu})
        index = cls(**parameters)
        vectors = artifact.array(f"{prefix}.vectors")
        if not stored["built"]:
            return index.build(vectors)
        faiss = require("faiss", extra="cpu")
        index._exact.build(vectors)
        index._index = index._on_device(faiss.deserialize_index(np.array(artifact.array(f"{prefix}.faiss"))))
        if index._index.ntotal != len(vectors) or index._index.d != vectors.shape[1]:
            raise ArtifactError(f"{prefix}.faiss does not fit {prefix}.vectors; save the index again")
        return index


def load_index(artifact: Artifact, prefix: str) -> Index:
    """The index stored under `prefix`, of whichever class wrote it."""
    name = artifact.json(prefix)["class"]
    return FaissIndex.load(artifact, prefix) if name == "FaissIndex" else ExactIndex.load(artifact, prefix)


@dataclass(frozen=True)
class Chosen:
    """An index, its measured recall, median seconds for one query, and the choice in words."""

    index: Index
    recall: float
    seconds_per_query: float
    reason: str


def choose_index(
    vectors: NDArray[np.float32],
    *,
    target_recall: float = 0.95,
    k: int = 10,
    sample_queries: NDArray[np.float32] | None = None,
    max_seconds: float | None = None,
) -> Chosen:
    """The quickest index of `vectors` (n, d) that finds `target_recall` of the true top k, by measurement.

    Up to 50,000 items, or where the exact index answers within `max_seconds`, it is the exact one. Otherwise HNSW and
    IVF-PQ are built, their effort is raised until the target is met, and the quickest that meets it is returned.

    Args:
        vectors: (n, d) float32.
        target_recall: share of the exact top k to be found, above 0 and at most 1.
        k: results per query.
        sample_queries: (b, d) queries like those to come. None draws 200 of the vectors, which suits item-to-item
            search only: users' queries are harder to serve.
        max_seconds: a time for one query that is quick enough.
    """
    if not 0 < target_recall <= 1:
        raise InputError(f"target_recall is {target_recall}; it must lie above 0 and be at most 1")
    vectors = (exact := ExactIndex().build(vectors)).vectors
    if not len(vectors):
        return Chosen(exact, 1.0, 0.0, "exact: there are no items yet")
    if sample_queries is None:
        sample_queries = vectors[np.random.default_rng(0).permutation(len(vectors))[:200]]
    sample_queries = _checked(sample_queries, vectors.shape[1])
    truth, seconds = exact.search(sample_queries, k), _seconds(exact, sample_queries, k)
    size = f"{len(vectors):,} items, {1e3 * seconds:.2f} ms a query"
    if len(vectors) <= EXACT_UP_TO:
        return Chosen(exact, 1.0, seconds, f"exact: {size}; up to {EXACT_UP_TO:,} items nothing else is tried")
    if max_seconds is not None and seconds <= max_seconds:
        return Chosen(exact, 1.0, seconds, f"exact: {size}, within the {1e3 * max_seconds:.2f} ms asked for")
    best = Chosen(exact, 1.0, seconds, f"exact: {size}; nothing quicker finds {target_recall:.0%} of its top {k}")
    for kind, setting, efforts in _TRIALS:
        index = FaissIndex(kind).build(vectors)
        for effort in efforts:
            setattr(index, setting, effort)
            recall = _recall(index.search(sample_queries, k), truth)
            if recall >= target_recall:
                if (taken := _seconds(index, sample_queries, k)) < best.seconds_per_query:
                    reason = (
                        f"{kind}, {setting} {effort}: finds {recall:.1%} of the exact top {k} of {len(truth.scores)} "
                    )
                    reason += f"queries in {1e3 * taken:.2f} ms a query; exact: {size}"
                    best = Chosen(index, recall, taken, reason)
                break
    return best


_TRIALS: tuple[tuple[Kind, str, tuple[int, ...]], ...] = (
    ("hnsw", "search_effort", (32, 64, 128, 256, 512, 1024)),
    ("ivfpq", "probes", (8, 16, 32, 64, 128)),
)


def _recall(found: TopK, truth: TopK) -> float:
    """Share of the true results that were found, a score equal to the k-th true one counting as found."""
    least = np.where(truth.positions >= 0, truth.scores, np.inf).min(axis=1, keepdims=True)
    hits = np.count_nonzero((found.positions >= 0) & (found.scores >= least))
    return float(hits) / max(1, int(np.count_nonzero(truth.positions >= 0)))


def _seconds(index: Index, queries: NDArray[np.float32], k: int) -> float:
    """Median time of one query alone, after a first one that does not count."""
    taken = []
    for i in range(min(len(queries), 50)):
        start = time.perf_counter()
        index.search(queries[i : i + 1], k)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:] or taken))


def _checked(vectors: NDArray[np.float32], dim: int | None) -> NDArray[np.float32]:
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or (dim is not None and vectors.shape[1] != dim):
        raise InputError(f"vectors have shape {vectors.shape}; they must be (n, {dim or 'dim'})")
    if not np.isfinite(vectors).all():
        raise InputError("vectors hold NaN or infinite values; drop or mend those rows first")
    return vectors


def _expect(stored: Any, name: str, prefix: str) -> None:
    if stored["class"] != name:
        raise ArtifactError(f"{prefix} holds a {stored['class']}, not a {name}; use load_index")


def nearest(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, *, mask: NDArray[np.bool_] | None = None
) -> TopK:
    """The k vectors (n, d) of greatest inner product with each of many queries (b, d), for building neighbourhoods.

    Exact while that takes minutes at most (n * b * d up to 1e13); beyond, the best of the 32 nearest of about
    4 sqrt(n) lists (FAISS IVF), which misses a few. Scores are exact either way.
    """
    blocks = [queries[s : s + 8192] for s in range(0, max(len(queries), 1), 8192)]
    if len(vectors) * len(queries) * vectors.shape[1] <= _NEAREST_EXACT:
        index = ExactIndex().build(vectors)
        parts = [index.search(block, k, mask=mask) for block in blocks]
    else:
        faiss = require("faiss", extra="cpu")
        rows = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
        lists = int(4 * len(rows) ** 0.5)
        found = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT
        )
        drawn = np.random.default_rng(0).permutation(rows)[: 50 * lists]
        found.train(np.ascontiguousarray(vectors[np.sort(drawn)]))
        for s in range(0, len(rows), 100_000):
            found.add(np.ascontiguousarray(vectors[rows[s : s + 100_000]]))
        found.nprobe = 32
        parts = []
        for block in blocks:
            scores, places = found.search(np.ascontiguousarray(block), k)
            parts.append(
                TopK(np.where(places < 0, -1, rows[np.maximum(places, 0)]), np.where(places < 0, -np.inf, scores))
            )
    return TopK(np.concatenate([p.positions for p in parts]), np.concatenate([p.scores for p in parts]))
