"""The `Index` protocol, and checks that its implementations share."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.errors import ArtifactError, InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import TopK


class Index(Protocol):
    """Search by inner product over vectors that are set with `build` and appended to with `add`."""

    def __len__(self) -> int: ...

    def build(self, vectors: NDArray[np.float32]) -> Self:
        """Index `vectors` (n, d), replacing any previous ones."""
        ...

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append `vectors` (m, d) at positions n to n + m - 1."""
        ...

    def extended(self, vectors: NDArray[np.float32]) -> Index:
        """A copy with `vectors` (m, d) appended; this index is unchanged."""
        ...

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All indexed vectors (n, d)."""
        ...

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        exclude: sparse.csr_array | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> TopK:
        """The k best items for each query (b, d); arguments and result as in `topk.top_k`."""
        ...

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Write the index to the parts `prefix` and `prefix.*`."""
        ...

    @classmethod
    def load(cls, artifact: Artifact, prefix: str) -> Self:
        """The index that `save` wrote under `prefix`."""
        ...


def checked_vectors(vectors: NDArray[np.float32], dim: int | None) -> NDArray[np.float32]:
    """The vectors as C-ordered float32; raises `InputError` for a wrong shape or values that are not finite."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or (dim is not None and vectors.shape[1] != dim):
        raise InputError(f"vectors have shape {vectors.shape}; they must be (n, {dim or 'dim'})")
    if not np.isfinite(vectors).all():
        raise InputError("vectors contain NaN or infinite values; remove or fix those rows first")

    return vectors


def expect_stored(stored: dict[str, Any], name: str, prefix: str) -> None:
    """Raise `ArtifactError` if the stored index is of another class than `name`."""
    if stored["class"] != name:
        raise ArtifactError(f"{prefix} was saved by {stored['class']}, not {name}; use load_index")
