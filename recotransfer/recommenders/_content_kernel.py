"""The content kernel: cosines to the nearest items, scaled locally, and behaviour that agrees with content."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings
from recotransfer.numerics.sparse import cell_products, keep_largest, scaled
from recotransfer.numerics.vectors import Float, reciprocal, unit_rows
from recotransfer.recommenders.base import Matrix
from recotransfer.retrieval import nearest

_AGREEMENT = 1.0  # relative gain of a behaviour weight between items of equal content; 1 to 3 measured alike
_NEAREST = 20  # neighbours whose mean cosine is an item's local scale
_SAME = 1 - 1e-6  # cosine above which two vectors count as equal


def nearest_cosines(queries: Float, vectors: Float, present: NDArray[np.bool_], neighbours: int) -> sparse.csr_array:
    """(items, queries) positive cosines of each query's nearest items, itself included if it is one of them.

    `queries` and `vectors` are rows of unit length; items that are not `present` are nobody's neighbours.
    """
    found = nearest(vectors, queries, min(neighbours + 1, len(vectors)), mask=present)
    kept = (found.positions >= 0) & (found.scores > 0)
    column = np.broadcast_to(np.arange(len(queries))[:, None], kept.shape)[kept]
    shape = (len(vectors), len(queries))

    return sparse.coo_array((found.scores[kept], (found.positions[kept], column)), shape=shape).tocsr()


def sharpened(cosines: sparse.csr_array, rows: Float, columns: Float, sharpness: float) -> sparse.csr_array:
    """Cosines ** sharpness, after dividing each cosine by the roots of both items' local scales."""
    out = scaled(cosines, roots(rows), roots(columns))
    out.data **= np.float32(sharpness)
    return out


def stand_ins(near: sparse.csr_array, users: NDArray[Any]) -> sparse.csr_array:
    """(items, m) `near` among items with users, columns summing to 1: who lends its behaviour.

    Args:
        near: (items, m) cells of the kernel.
        users: number of users of each item, for at least these items.
    """
    warm = scaled(near, users[: near.shape[0]] > 0, None)
    warm.eliminate_zeros()
    return scaled(warm, None, reciprocal(warm.sum(axis=0)))


def unit_embeddings(items: Embeddings) -> Embeddings:
    """The same embeddings with rows of unit length."""
    return Embeddings(items.ids, unit_rows(items.vectors), items.source, items.has_content, items.blocks)


def roots(values: Float) -> Float:
    """1 / sqrt(values), or 0 for values that are not positive."""
    return np.sqrt(reciprocal(values)).astype(np.float32)


def local_scale(cosines: sparse.csr_array) -> Float:
    """(columns,) mean of each column's 20 largest cosines, without those of equal vectors such as the item itself."""
    others = cosines.copy()
    others.data[others.data > _SAME] = 0
    best = keep_largest(others, _NEAREST)
    counts = np.asarray((best != 0).sum(axis=0))
    return np.asarray(best.sum(axis=0) * reciprocal(counts), np.float32)


def agreed(behaviour: Matrix, items: Embeddings) -> Matrix:
    """Each cell multiplied by 1 + relu(cosine) of its two items, then rescaled to the former sum of magnitudes.

    Cells of items without content are unchanged.
    """
    present = items.has_content
    if isinstance(behaviour, np.ndarray):
        table = 1 + _AGREEMENT * np.maximum(items.vectors @ items.vectors.T, 0)
        table[~(present[:, None] & present)] = np.nan
        old, factor = behaviour.ravel(), table.ravel()
    else:
        both = np.repeat(present, np.diff(behaviour.indptr)) & present[behaviour.indices]
        cosine = cell_products(behaviour, items.vectors)
        old, factor = behaviour.data, np.where(both, 1 + _AGREEMENT * np.maximum(cosine, 0), np.nan)

    size = np.abs(old)
    changed = ~np.isnan(factor)
    scale = (size[changed].sum() * reciprocal(np.array([size[changed] @ factor[changed]])))[0]
    values = (old * np.where(changed, factor * scale, 1)).astype(np.float32)
    if isinstance(behaviour, np.ndarray):
        return values.reshape(behaviour.shape)

    return sparse.csr_array((values, behaviour.indices, behaviour.indptr), shape=behaviour.shape)
