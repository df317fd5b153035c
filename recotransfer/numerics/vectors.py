"""Small operations on rows of dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def gaussian_kernel(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, n) Gaussian kernel exp(-d^2 / 2 s^2) of points (n, dim), with zero diagonal.

    d is the distance of two points, s^2 the median of d^2 over all pairs (the median heuristic).
    """
    centred = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    square = (centred**2).sum(axis=1)
    squared_distance = np.maximum(square[:, None] + square - 2 * centred @ centred.T, 0)
    width = np.median(squared_distance[np.triu_indices(len(points), 1)])
    kernel: NDArray[np.float64] = (
        np.exp(-squared_distance / (2 * width)) if width > 0 else (squared_distance == 0).astype(np.float64)
    )
    np.fill_diagonal(kernel, 0)
    return kernel


def reciprocal(values: NDArray[np.number]) -> NDArray[np.float64]:
    """1 / values, or 0 for values that are not positive."""
    real: NDArray[np.float64] = np.asarray(values, np.float64)
    return np.divide(1.0, real, out=np.zeros_like(real), where=real > 0)


def unit_rows(vectors: Float) -> Float:
    """The rows scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors * reciprocal(lengths), np.float32)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: numba compiles a loop anew for writable and for read-only arrays, so it gets only these."""
    view = np.asarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view
