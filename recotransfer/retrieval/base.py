"""The contract of every index."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.errors import ArtifactError, InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import TopK


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
        """The k best items of each query (b, d); arguments and result as in `topk.top_k`."""
        ...

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Store the parts `prefix` and `prefix.*`."""
        ...

    @classmethod
    def load(cls, artifact: Artifact, prefix: str) -> Self:
        """The index that `save` stored under `prefix`."""
        ...


def checked_vectors(vectors: NDArray[np.float32], dim: int | None) -> NDArray[np.float32]:
    """The vectors as C-ordered float32; `InputError` where their shape or a value is wrong."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or (dim is not None and vectors.shape[1] != dim):
        raise InputError(f"vectors have shape {vectors.shape}; they must be (n, {dim or 'dim'})")
    if not np.isfinite(vectors).all():
        raise InputError("vectors hold NaN or infinite values; drop or mend those rows first")

    return vectors


def expect_stored(stored: Any, name: str, prefix: str) -> None:
    """Raise `ArtifactError` where an index of another class was stored."""
    if stored["class"] != name:
        raise ArtifactError(f"{prefix} holds a {stored['class']}, not a {name}; use load_index")
