"""Fuse several modalities into one vector: blocks are centred, normalised and weighted, and missing ones imputed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, IdMap
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter

_MAX_ROWS = 20_000  # more rows change the regression between blocks by less than its own error
_WIDEST = 2048  # columns of predictors whose eigenvectors are computed in seconds
_PENALTIES = np.geomspace(1e-5, 10, 13)  # ridge penalties tried, in units of the sources' mean eigenvalue


@checked_class
class Fusion:
    """Concatenates blocks so that the dot product of two items is the weighted mean of their cosines in each block.

    Each block is centred on the mean of the items that have it, normalised to unit length and multiplied by the square
    root of its weight (weights are scaled to sum to 1). A missing block is imputed by its conditional mean given the
    item's other blocks: ridge regression, with the penalty chosen on held-out rows. Imputed vectors have at most unit
    length, and are shorter the less the other blocks predict. Items without any block have zeros and `has_content`
    False.

    Reasons give each block's share of a score. A linear map on the fused vectors (`Whitening`, `RidgeMap`,
    `LearnedMetric`) mixes the blocks, so reasons then name them together, such as "text+image"; after a network they
    say "content".

    Args:
        weights: block name -> weight of at least 0; blocks not named have weight 1. Several embeddings of one modality
            are named "text", "text 2" and so on.
        seed: random seed for sampling rows if there are more than 20,000.
    """

    def __init__(self, *, weights: Mapping[str, float] | None = None, seed: int = 0) -> None:
        self.weights = weights
        self.seed = seed
        self._state: _State | None = None
        self._maps: dict[tuple[int, tuple[int, ...]], NDArray[np.float32]] = {}

    def fit(self, embeddings: Sequence[Embeddings]) -> Self:
        """Learn the mean of each block and how to predict it from the others. Returns self.

        Args:
            embeddings: one per block; they may have different items.
        """
        names = _block_names(embeddings)
        _shares(names, self.weights)
        _, tables, masks = _align(embeddings)
        means = [_mean(t, m) for t, m in zip(tables, masks, strict=True)]
        rows = [_centre(t, m, mean) for t, m, mean in zip(tables, masks, means, strict=True)]
        widths = tuple(t.shape[1] for t in tables)
        rng = np.random.default_rng(self.seed)
        moments = _moments(rows, masks, rng) if len(rows) > 1 else np.zeros((0, 0), np.float32)
        sources = tuple(part.source for part in embeddings)
        state = _State(names, widths, sources, means, moments, np.ones(len(names)))

        for target in range(len(names) if len(names) > 1 else 0):
            state.penalties[target] = _penalty(rows, masks, target, rng)

        self._state, self._maps = state, {}

        return self

    def transform(self, embeddings: Sequence[Embeddings]) -> Embeddings:
        """The fused vectors of all items of the embeddings, in the order of blocks of `fit`; items may be new.

        Raises:
            InputError: the blocks are not those of `fit`.
            NotFittedError: neither `fit` nor `load` was called.
        """
        state = self._fitted()
        names = _block_names(embeddings)
        widths = tuple(part.dim for part in embeddings)
        if (names, widths) != (state.names, state.widths):
            raise InputError(
                f"fitted on blocks {state.names} of widths {state.widths}, but given {names} of widths {widths}"
            )

        ids, tables, masks = _align(embeddings)
        rows = [_centre(t, m, mean) for t, m, mean in zip(tables, masks, state.means, strict=True)]
        self._impute(rows, np.stack(masks))
        shares = _shares(names, self.weights)
        vectors = np.concatenate([np.sqrt(s, dtype=np.float32) * r for s, r in zip(shares, rows, strict=True)], axis=1)
        source = " + ".join(f"{s:.3g} x {part.source}" for s, part in zip(shares, embeddings, strict=True))
        blocks = tuple(zip(names, widths, strict=True))

        return Embeddings(ids, vectors, f"fused({source})", np.any(masks, axis=0), blocks)

    def _fitted(self) -> _State:
        if self._state is None:
            raise NotFittedError.of(self)

        return self._state

    def _impute(self, rows: list[NDArray[np.float32]], masks: NDArray[np.bool_]) -> None:
        """Fill in missing blocks in place; items with the same blocks are imputed together."""
        patterns, which = np.unique(masks, axis=1, return_inverse=True)
        observed = [rows[b].copy() if not masks[b].all() else rows[b] for b in range(len(rows))]

        for at, pattern in enumerate(patterns.T):
            sources = tuple(np.flatnonzero(pattern).tolist())
            if not sources or len(sources) == len(pattern):
                continue

            items = np.flatnonzero(which.ravel() == at)
            predictors = np.concatenate([observed[b][items] for b in sources], axis=1)
            for target in np.flatnonzero(~pattern).tolist():
                imputed = predictors @ self._map(target, sources)
                length = np.linalg.norm(imputed, axis=1, keepdims=True)
                rows[target][items] = imputed / np.maximum(length, 1)

    def _map(self, target: int, sources: tuple[int, ...]) -> NDArray[np.float32]:
        """(sum of source widths, target width) ridge regression of a block on others, solved when first needed."""
        if (target, sources) not in self._maps:
            state = self._fitted()
            predictors = np.concatenate([state.columns(b) for b in sources])
            gram = state.moments[np.ix_(predictors, predictors)].astype(np.float64)
            cross = state.moments[np.ix_(predictors, state.columns(target))].astype(np.float64)
            gram[np.diag_indices_from(gram)] += state.penalties[target] * max(np.trace(gram) / len(gram), 1e-12)
            self._maps[target, sources] = linalg.lstsq(gram, cross)[0].astype(np.float32)

        return self._maps[target, sources]

    def save(self, writer: ArtifactWriter, prefix: str = "fusion") -> None:
        """Write the fitted state as parts of an artefact whose names begin with `prefix`."""
        state = self._fitted()
        about = {"names": state.names, "widths": state.widths, "sources": state.sources, "rng": self.seed}
        writer.json(prefix, {**about, "weights": None if self.weights is None else dict(self.weights)})
        writer.array(f"{prefix}.mean", np.concatenate(state.means))
        writer.array(f"{prefix}.moments", state.moments)
        writer.array(f"{prefix}.penalties", state.penalties)

    @classmethod
    def load(cls, artifact: Artifact, prefix: str = "fusion") -> Self:
        """Load a fusion that `save` wrote under `prefix`."""
        about: dict[str, Any] = artifact.json(prefix)
        fusion = cls(weights=about["weights"], seed=about["rng"])
        widths = tuple(about["widths"])
        means = np.split(np.asarray(artifact.array(f"{prefix}.mean")), np.cumsum(widths)[:-1])
        moments, penalties = artifact.array(f"{prefix}.moments"), np.asarray(artifact.array(f"{prefix}.penalties"))
        fusion._state = _State(tuple(about["names"]), widths, tuple(about["sources"]), means, moments, penalties)
        return fusion


@checked
def fuse(embeddings: Sequence[Embeddings], weights: Mapping[str, float] | None = None) -> Embeddings:
    """Fuse several modalities into one vector per item; if new items will follow, fit and keep a `Fusion` instead."""
    return Fusion(weights=weights).fit(embeddings).transform(embeddings)


@checked
def block_names(modalities: Sequence[str]) -> tuple[str, ...]:
    """Names of the blocks of a `Fusion`: their modalities, numbered where one repeats ("text", "text 2")."""
    names: list[str] = []
    for modality in modalities:
        before = sum(name == modality or name.startswith(f"{modality} ") for name in names)
        names.append(f"{modality} {before + 1}" if before else modality)

    return tuple(names)


@dataclass
class _State:
    """What `Fusion` learns.

    Attributes:
        names, widths, sources: name, width and source of each block.
        means: (width,) mean of each block.
        moments: (sum of widths, sum of widths) mean outer product of centred unit rows.
        penalties: (blocks,) ridge penalty of the regression that predicts each block.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    sources: tuple[str, ...]
    means: list[NDArray[np.float32]]
    moments: NDArray[np.float32]
    penalties: NDArray[np.float64]

    def columns(self, block: int) -> NDArray[np.int64]:
        """Rows and columns of a block in `moments`."""
        start = sum(self.widths[:block])
        return np.arange(start, start + self.widths[block])


def _block_names(embeddings: Sequence[Embeddings]) -> tuple[str, ...]:
    """Name of each block: its modality, numbered from the second of the same name."""
    if not embeddings:
        raise InputError("no embeddings to fuse; give at least one")

    return block_names([part.modalities for part in embeddings])


def _shares(names: Sequence[str], weights: Mapping[str, float] | None) -> NDArray[np.float64]:
    """(blocks,) weights scaled to sum to 1."""
    if weights is None:
        return np.full(len(names), 1 / len(names))
    if unknown := set(weights) - set(names):
        raise InputError(f"weights name unknown blocks {sorted(unknown)}; the blocks are {list(names)}")

    values = np.array([float(weights.get(name, 1.0)) for name in names])
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise InputError(f"weights are {dict(weights)}; they must be finite, at least 0, and one of them positive")

    shares: NDArray[np.float64] = values / values.sum()

    return shares


def _align(embeddings: Sequence[Embeddings]) -> tuple[IdMap, list[NDArray[np.float32]], list[NDArray[np.bool_]]]:
    """The union of all ids, and the vectors and presence of each block in that order."""
    ids = reduce(lambda left, right: left.union(right), [part.ids for part in embeddings])
    aligned = [part.align(ids) for part in embeddings]
    return ids, [part.vectors for part in aligned], [part.has_content for part in aligned]


def _mean(table: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    if not mask.any():
        return np.zeros(table.shape[1], np.float32)

    mean: NDArray[np.float32] = table.mean(axis=0, where=mask[:, None], dtype=np.float64).astype(np.float32)
    return mean


def _centre(table: NDArray[np.float32], mask: NDArray[np.bool_], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centred rows of unit length; zeros where the block is missing or equals the mean."""
    rows = table - mean
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scale = np.divide(1, length, out=np.zeros_like(length), where=(length > 1e-9) & mask[:, None])
    rows *= scale
    return rows


def _sample(rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return rows if len(rows) <= _MAX_ROWS else np.sort(rng.choice(rows, _MAX_ROWS, replace=False))


def _moments(
    rows: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], rng: np.random.Generator
) -> NDArray[np.float32]:
    """(sum of widths, sum of widths) second moments of all pairs of blocks, each over the items that have both."""
    edges = np.cumsum([0, *(r.shape[1] for r in rows)])
    out = np.zeros((edges[-1], edges[-1]), np.float32)

    for a in range(len(rows)):
        for b in range(a, len(rows)):
            both = _sample(np.flatnonzero(masks[a] & masks[b]), rng)
            if not len(both):
                continue

            moment = rows[a][both].T @ rows[b][both] / len(both)
            out[edges[a] : edges[a + 1], edges[b] : edges[b + 1]] = moment
            out[edges[b] : edges[b + 1], edges[a] : edges[a + 1]] = moment.T

    return out


def _penalty(
    rows: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], target: int, rng: np.random.Generator
) -> float:
    """The ridge penalty that best predicts the target block from the others on a held-out fifth of complete items."""
    complete = _sample(np.flatnonzero(np.all(masks, axis=0)), rng)
    width = sum(row.shape[1] for at, row in enumerate(rows) if at != target)
    if len(complete) < 20 or width > _WIDEST:  # too few or too costly to choose by, so the strongest penalty is safest
        return float(_PENALTIES[-1])

    complete = rng.permutation(complete)
    test, train = complete[: len(complete) // 5], complete[len(complete) // 5 :]
    others = [b for b in range(len(rows)) if b != target]

    # In the eigenbasis of the predictors a penalty only rescales coordinates, so all are tried at little cost.
    predictors = np.concatenate([rows[b][train] for b in others], axis=1)
    eigenvalues, basis = linalg.eigh(predictors.T @ predictors / len(train))
    cross = basis.T @ (predictors.T @ rows[target][train] / len(train))
    rotated = np.concatenate([rows[b][test] for b in others], axis=1) @ basis
    unit = max(float(eigenvalues.sum()) / len(eigenvalues), 1e-12)
    errors = []

    for penalty in _PENALTIES:
        predicted = (rotated / np.maximum(eigenvalues + penalty * unit, 1e-12).astype(np.float32)) @ cross
        errors.append(float(np.square(rows[target][test] - predicted).sum()))

    return float(_PENALTIES[int(np.argmin(errors))])
