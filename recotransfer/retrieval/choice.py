"""Choosing an index by measurement, saving any index, and nearest neighbours of many queries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import TopK
from recotransfer.registry import indexes
from recotransfer.retrieval.base import Index, checked_vectors
from recotransfer.retrieval.exact import ExactIndex
from recotransfer.retrieval.faiss import FaissIndex, Kind

EXACT_UP_TO = 50_000  # items up to which `choose_index` takes the exact index without trying others
_NEAREST_EXACT = 1e13  # vectors x queries x dimensions up to which `nearest` is exact


@checked
def save_index(index: Index, writer: ArtifactWriter, prefix: str) -> None:
    """Write any index and the name of its class to the parts `prefix.class`, `prefix` and `prefix.*`."""
    writer.json(f"{prefix}.class", indexes.name_to_save(type(index)))
    index.save(writer, prefix)


@checked
def load_index(artifact: Artifact, prefix: str) -> Index:
    """The index saved under `prefix`, of the class that wrote it.

    Raises:
        ArtifactError: the class is not part of this package, and its module has not been imported yet.
    """
    named = f"{prefix}.class.json" in artifact  # format 1 may store the class in the index's own part
    name = artifact.json(f"{prefix}.class") if named else artifact.json(prefix)["class"]

    return cast(Index, indexes.find_saved(name).load(artifact, prefix))


@checked_class
@dataclass(frozen=True)
class Chosen:
    """An index with its measured recall, its median seconds per query, and the reason for the choice."""

    index: Index
    recall: float
    seconds_per_query: float
    reason: str


@checked
def choose_index(
    vectors: NDArray[np.float32],
    *,
    target_recall: float = 0.95,
    k: int = 10,
    sample_queries: NDArray[np.float32] | None = None,
    max_seconds: float | None = None,
) -> Chosen:
    """The fastest index of `vectors` (n, d) that reaches `target_recall`, by measurement.

    It is the exact index for up to 50,000 items, or if that answers a query within `max_seconds`. Otherwise HNSW and
    IVF-PQ are built, their search effort is raised until they reach the target, and the fastest index that does is
    returned.

    Args:
        vectors: (n, d) float32.
        target_recall: share of the exact top k that must be found, above 0 and at most 1.
        k: results per query.
        sample_queries: (b, d) representative queries. None samples 200 of the vectors, which suits item-to-item search
            only: recall is lower for users' queries.
        max_seconds: time per query that is fast enough.

    Raises:
        InputError: `target_recall` is out of range, or vectors or queries have a wrong shape or are not finite.
    """
    if not 0 < target_recall <= 1:
        raise InputError(f"target_recall is {target_recall}; it must lie above 0 and be at most 1")

    vectors = (exact := ExactIndex().build(vectors)).vectors
    if not len(vectors):
        return Chosen(exact, 1.0, 0.0, "exact: there are no items yet")

    if sample_queries is None:
        sample_queries = vectors[np.random.default_rng(0).permutation(len(vectors))[:200]]

    sample_queries = checked_vectors(sample_queries, vectors.shape[1])
    truth, seconds = exact.search(sample_queries, k), _seconds(exact, sample_queries, k)
    size = f"{len(vectors):,} items, {1e3 * seconds:.2f} ms a query"
    if len(vectors) <= EXACT_UP_TO:
        return Chosen(exact, 1.0, seconds, f"exact: {size}; no other index is tried for up to {EXACT_UP_TO:,} items")
    if max_seconds is not None and seconds <= max_seconds:
        return Chosen(exact, 1.0, seconds, f"exact: {size}, within the limit of {1e3 * max_seconds:.2f} ms")

    best = Chosen(exact, 1.0, seconds, f"exact: {size}; nothing faster finds {target_recall:.0%} of its top {k}")
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
    """Share of the true results that were found; any result that ties with the k-th true score counts."""
    least = np.where(truth.positions >= 0, truth.scores, np.inf).min(axis=1, keepdims=True)
    hits = np.count_nonzero((found.positions >= 0) & (found.scores >= least))
    return float(hits) / max(1, int(np.count_nonzero(truth.positions >= 0)))


def _seconds(index: Index, queries: NDArray[np.float32], k: int) -> float:
    """Median seconds per query, sent one at a time; the first is a warm-up and does not count."""
    taken = []
    for i in range(min(len(queries), 50)):
        start = time.perf_counter()
        index.search(queries[i : i + 1], k)
        taken.append(time.perf_counter() - start)

    return float(np.median(taken[1:] or taken))


@checked
def nearest(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, *, mask: NDArray[np.bool_] | None = None
) -> TopK:
    """The k vectors (n, d) with the largest inner product for each of many queries (b, d), to build neighbourhoods.

    The search is exact for n * b * d up to 1e13, which takes minutes at most. Beyond that, FAISS IVF searches the 32
    nearest of about 4 sqrt(n) lists, which misses a few neighbours. Scores are exact either way.
    """
    vectors, queries = np.asarray(vectors, np.float32), np.asarray(queries, np.float32)
    if vectors.ndim != 2 or queries.ndim != 2:
        raise InputError(f"vectors have shape {vectors.shape} and queries {queries.shape}; both must be (n, d)")

    blocks = [queries[s : s + 8192] for s in range(0, max(len(queries), 1), 8192)]
    if len(vectors) * len(queries) * vectors.shape[1] <= _NEAREST_EXACT:
        index = ExactIndex().build(vectors)
        parts = [index.search(block, k, mask=mask) for block in blocks]
    else:
        faiss = require("faiss")
        rows = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
        lists = int(4 * len(rows) ** 0.5)
        ivf = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT
        )
        drawn = np.random.default_rng(0).permutation(rows)[: 50 * lists]  # FAISS recommends at least 39 per list
        ivf.train(np.ascontiguousarray(vectors[np.sort(drawn)]))
        for s in range(0, len(rows), 100_000):
            ivf.add(np.ascontiguousarray(vectors[rows[s : s + 100_000]]))

        ivf.nprobe = 32
        parts = []
        for block in blocks:
            scores, places = ivf.search(np.ascontiguousarray(block), k)
            parts.append(
                TopK(np.where(places < 0, -1, rows[np.maximum(places, 0)]), np.where(places < 0, -np.inf, scores))
            )

    return TopK(np.concatenate([p.positions for p in parts]), np.concatenate([p.scores for p in parts]))
