"""What `HybridRanker` knows of a candidate: scores of the parts of its first stage, transitions, cosines, counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.numerics.ages import AGE_EDGES, Steps, steps_of, transitions
from recotransfer.numerics.candidates import add_candidate_cosines, add_candidate_sums
from recotransfer.numerics.sparse import by_line, keep_largest, scaled, smoothed
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float, reciprocal, unit_rows
from recotransfer.recommenders.learned_hybrid import LearnedHybrid

_FEW = 5  # pseudo-count added to the number of events after an item, to discount what followed it once or twice
_LEAST = 0.05  # score up to which the log score is a straight line, so that scores below 0 have one, too
# Sums of the candidate's cells over the items of the history. "decayed" weights items by the learned weights of their
# age, "newest" takes only the newest, "previous" the one before, "flat" weights all equally, "number" counts positive
# cells.
_SUMS = {
    "co-occurrence": ("decayed", "newest", "flat", "number"),
    "order": ("decayed", "newest", "previous"),
    "wide order": ("decayed", "newest"),
    "borrowed co-occurrence": ("decayed", "newest"),
    "near": ("decayed", "newest", "flat"),
    "next": ("decayed", "newest", "previous"),
    "after next": ("newest",),
    "reversed": ("decayed",),
    "bridged": ("decayed",),
}
_PLAIN = ("score", "popularity", "popularity of the history", "length of the history")
_OF_CONTENT = ("cosine to the history", "density", "coherence")
_OF_NEWEST = ("popularity of the newest", "cosine to the newest", "cosine to the previous", "cosine of the two")


class CandidateFeatures:
    """The features of the candidates of a fitted first stage.

    Attributes:
        base: the first stage.
        extra: (items, items) matrices that the first stage does not have: what came next, and so on.
        columns: feature -> its column.
    """

    def __init__(self, base: LearnedHybrid, extra: dict[str, sparse.csr_array]) -> None:
        self.base, self.extra = base, extra
        parts, names = base.parts_, list(_PLAIN)
        found = {**parts.matrices, **extra}
        if "order" in found:
            found["reversed"] = sparse.csr_array(found["order"].T)

        timed = "next" in found
        if base.items_ is not None:
            names += _OF_CONTENT
            names += [
                f"{kind} {name}" for name in parts.vectors for kind in (("decayed", "newest") if timed else ("flat",))
            ]

        if timed:
            names += _OF_NEWEST if base.items_ is not None else _OF_NEWEST[:1]

        for name in found:
            kinds = _SUMS[name if name in _SUMS else name.partition(" ")[0]]
            names += [f"{kind} {name}" for kind in kinds if timed or kind in ("flat", "number")]

        self._matrices = {name: by_line(matrix) for name, matrix in found.items()}
        self.columns = {name: at for at, name in enumerate(names)}

    @classmethod
    def of(cls, base: LearnedHybrid, events: Interactions) -> CandidateFeatures:
        """Those of a first stage fitted on `events`."""
        extra, parts = {}, base.parts_
        if events.time is not None:
            past, future = transitions(
                steps_of(events, by_moment=base.by_moment_), len(events.items), 1.0, 1.0, horizon=1
            )
            follows = sparse.csr_array(past.T @ future)
            extra["next"] = scaled(follows, 1 / (follows.sum(axis=1) + _FEW), None)
            extra["after next"] = keep_largest(sparse.csr_array(extra["next"] @ extra["next"]), 4 * base.neighbours)
            if parts.lookalikes is not None:
                extra["bridged"] = _bridged(parts.matrices["order"], parts.lookalikes, 2 * base.neighbours)

        return cls(base, extra)

    def extended(self, base: LearnedHybrid) -> CandidateFeatures:
        """Those of the first stage with new items, which follow nothing."""
        n = len(base.catalogue_)
        return CandidateFeatures(base, {name: _padded(matrix, n) for name, matrix in self.extra.items()})

    def values(self, events: Interactions, top: TopK) -> Float:
        """(users, m, features) of the candidates in `top` (users, m), in the order of `columns`.

        Those of padding have no meaning.
        """
        base, steps = self.base, steps_of(events, by_moment=self.base.by_moment_)
        out = np.zeros((*top.positions.shape, len(self.columns)), np.float32)
        shape = len(events.users), len(events.items)
        bucket = np.searchsorted(AGE_EDGES, steps.age, side="right") - 1
        newest, previous = (steps.strength * (steps.age == age) for age in (0, 1))

        def decayed(name: str) -> Float:
            curve = base.parts_.curve_of.get(name, "order")
            return (
                np.asarray(steps.strength * base.blend_.age[curve][1][bucket], np.float32)
                if curve in base.blend_.age
                else steps.strength
            )

        for name, matrix in self._matrices.items():
            rest = "previous" if f"previous {name}" in self.columns else "flat"
            weight = np.stack([decayed(name), newest, previous if rest == "previous" else steps.strength], axis=1)
            columns = [self.columns.get(f"{kind} {name}", -1) for kind in ("decayed", "newest", rest, "number")]
            users = steps.start, steps.item, weight.astype(np.float32)
            add_candidate_sums(out, users, matrix, top.positions, np.array(columns))

        def put(name: str, values: NDArray[Any]) -> None:
            if name in self.columns:
                out[..., self.columns[name]] = values

        def profile(weight: Float, vectors: Float) -> Float:
            own = sparse.csr_array((weight, steps.item, steps.start), shape=shape)
            return np.asarray(scaled(own, reciprocal(own.sum(axis=1)), None) @ vectors, np.float32)

        def cosines(name: str, query: Float, vectors: Float) -> None:
            if name in self.columns:
                add_candidate_cosines(out, unit_rows(query), vectors, top.positions, self.columns[name])

        popularity = np.log1p(base.popularity_)
        put("score", log_score(top.scores))
        put("popularity", popularity[top.positions])
        put("popularity of the history", _means(steps, popularity, steps.strength)[:, None])
        put("popularity of the newest", _means(steps, popularity, newest)[:, None])
        put("length of the history", np.log(np.maximum(np.diff(steps.start), 1))[:, None])
        if base.items_ is not None:
            unit = base.parts_.kernels[""].vectors
            put("density", base.parts_.kernels[""].scale[top.positions])
            last, before = profile(newest, unit), profile(previous, unit)
            cosines("cosine to the newest", last, unit)
            cosines("cosine to the previous", before, unit)
            put("cosine of the two", (unit_rows(last) * unit_rows(before)).sum(axis=1)[:, None])
            whole = profile(steps.strength, unit)
            cosines("cosine to the history", whole, unit)
            put("coherence", np.linalg.norm(whole, axis=1)[:, None])
            for name, vectors in base.parts_.vectors.items():
                for kind, weight in (("decayed", decayed(name)), ("newest", newest), ("flat", steps.strength)):
                    if f"{kind} {name}" in self.columns:
                        cosines(f"{kind} {name}", profile(weight, vectors), vectors)

        return out


def stored_at(matrix: sparse.csr_array, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(users, m) True where the matrix (users, items) has a cell above 0 at positions (users, m) padded with -1."""
    users = np.broadcast_to(np.arange(len(positions))[:, None], positions.shape)
    cells = matrix[users.ravel(), np.maximum(positions, 0).ravel()]
    values = cells.toarray() if sparse.issparse(cells) else np.asarray(cells)
    return np.asarray((values.reshape(positions.shape) > 0) & (positions >= 0))


def log_score(scores: Float) -> Float:
    """The logarithm of first-stage scores; up to `_LEAST` its tangent there, so that it rises everywhere."""
    line = np.log(_LEAST) + np.maximum(scores, -1e3) / _LEAST - 1
    return np.asarray(np.where(scores > _LEAST, np.log(np.maximum(scores, _LEAST)), line), np.float32)


def _means(steps: Steps, of_items: Float, weight: Float) -> NDArray[np.float64]:
    """(users,) weighted mean over each history of a value of its items."""
    users = len(steps.start) - 1
    total = np.bincount(steps.user, weight, users)
    return np.asarray(np.bincount(steps.user, weight * of_items[steps.item], users) * reciprocal(total), np.float64)


def _bridged(order: sparse.csr_array, lookalikes: sparse.csr_array, keep: int) -> sparse.csr_array:
    """What follows similar items: lookalikes' @ order, with the `keep` largest entries of each column."""
    n = order.shape[0]
    nothing, whole = np.zeros(n, np.float32), np.ones(n, np.float32)
    return smoothed(order, lookalikes, whole, lookalikes, nothing, sparse.csr_array((n, n), dtype=np.float32), keep)


def _padded(matrix: sparse.csr_array, n: int) -> sparse.csr_array:
    """The matrix with empty rows and columns appended, to shape (n, n)."""
    indptr = np.pad(matrix.indptr, (0, n - matrix.shape[0]), mode="edge")
    return sparse.csr_array((matrix.data, matrix.indices, indptr), shape=(n, n))
