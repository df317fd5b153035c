"""`Embeddings`: item vectors and their source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data.ids import IdMap, preview, read_only
from recotransfer.errors import InputError


@checked_class
@dataclass(frozen=True)
class Embeddings:
    """Item vectors from a frozen encoder or a transfer.

    Attributes:
        ids: the items, in row order.
        vectors: (n, dim) float32, finite; zero for items without content.
        source: the encoder's name and revision, and the transfers applied.
        present: (n,) bool, False for items without content; None means that all have content.
        blocks: (name, width) of the modalities concatenated in `vectors`, for example (("text", 384), ("image", 1280)).

    Raises:
        InputError: shapes that do not fit together, or vectors that are not finite numbers.
    """

    ids: IdMap
    vectors: NDArray[np.float32]
    source: str = "given"
    present: NDArray[np.bool_] | None = None
    blocks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2 or len(vectors) != len(self.ids):
            raise InputError(f"vectors have shape {vectors.shape}, wanted ({len(self.ids)}, dim)")
        if vectors.dtype.kind not in "fiub":
            raise InputError(f"vectors must be numbers, got {vectors.dtype}")

        with np.errstate(over="ignore"):  # overflow becomes infinity, which the next check rejects
            object.__setattr__(self, "vectors", vectors.astype(np.float32, copy=False))

        # In pieces, because a mask of a large table would take a quarter of its memory.
        bad = [i for s in range(0, len(self.ids), 65536) for i in _not_finite(self.vectors[s : s + 65536], s)]
        if bad:
            raise InputError(f"vectors must be finite; these items have NaN or infinity: {preview(self.ids.ids[bad])}")

        mask = np.ones(len(self.ids), bool) if self.present is None else np.asarray(self.present, bool)
        if mask.shape != (len(self.ids),):
            raise InputError(f"present has shape {mask.shape}, wanted ({len(self.ids)},)")

        if self.vectors[~mask].any():
            object.__setattr__(self, "vectors", np.where(mask[:, None], self.vectors, np.float32(0)))

        object.__setattr__(self, "vectors", read_only(self.vectors))
        object.__setattr__(self, "present", read_only(mask))
        if not self.blocks:
            object.__setattr__(self, "blocks", (("content", self.dim),))

        if sum(width for _, width in self.blocks) != self.dim:
            raise InputError(f"blocks {self.blocks} do not add up to dim {self.dim}")

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.vectors.shape[1])

    @property
    def has_content(self) -> NDArray[np.bool_]:
        """(n,) bool, True for items with content: `present`, which is never None once constructed."""
        assert self.present is not None  # set in __post_init__
        return self.present

    @property
    def modalities(self) -> str:
        """The names of the blocks joined by "+", such as "text+image"."""
        return "+".join(name for name, _ in self.blocks)

    def align(self, ids: IdMap) -> Embeddings:
        """The embeddings of `ids`, in that order; unknown ids get zero vectors and count as having no content."""
        if ids == self.ids:
            return self

        at = self.ids.positions(ids.ids, missing="negative")
        vectors = self.vectors[np.maximum(at, 0)] if len(self.ids) else np.zeros((len(ids), self.dim), np.float32)
        present = (at >= 0) & (self.has_content[np.maximum(at, 0)] if len(self.ids) else False)
        vectors[~present] = 0
        return Embeddings(ids, vectors, self.source, present, self.blocks)

    def concat(self, other: Embeddings) -> Embeddings:
        """These rows followed by those of `other`, whose ids must be new; `source` and `blocks` stay these."""
        if other.dim != self.dim:
            raise InputError(
                f"new items have {other.dim} dimensions and known items {self.dim}; use the same encoder for both"
            )

        vectors = np.concatenate([self.vectors, other.vectors])
        present = np.concatenate([self.has_content, other.has_content])
        return Embeddings(self.ids.union(other.ids), vectors, self.source, present, self.blocks)


def _not_finite(rows: NDArray[np.float32], start: int) -> list[int]:
    """Positions of rows with NaN or infinity, counted from `start`."""
    return [] if np.isfinite(rows).all() else (np.flatnonzero(~np.isfinite(rows).all(axis=1)) + start).tolist()
