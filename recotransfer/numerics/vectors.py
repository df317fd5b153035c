"""Small operations on rows of dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def gaussian_kernel(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(n, n) kernel exp(-d^2 / 2 s^2) of points (n, dim), s^2 the median squared distance d^2; its diagonal is zero."""
    centred = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    square = (centred**2).sum(axis=1)
    apart = np.maximum(square[:, None] + square - 2 * centred @ centred.T, 0)
    width = np.median(apart[np.triu_indices(len(apart), 1)])
    kernel: NDArray[np.float64] = np.exp(-apart / (2 * width)) if width > 0 else (apart == 0).astype(np.float64)
    np.fill_diagonal(kernel, 0)
    return kernel


def reciprocal(values: NDArray[Any]) -> NDArray[np.float64]:
    """1 / values, and 0 where a value is not positive."""
    real: NDArray[np.float64] = np.asarray(values, np.float64)
    return np.divide(1.0, real, out=np.zeros_like(real), where=real > 0)


def unit_rows(vectors: Float) -> Float:
    """The rows scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors * reciprocal(lengths), np.float32)
