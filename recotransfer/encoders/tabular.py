"""Category, brand, price and other attributes as one vector, by hashing alone: nothing is fitted, nothing is saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Items
from recotransfer.encoders.base import columns_of, is_missing
from recotransfer.errors import InputError

_RESOLUTIONS = (2, 12, 72, 432)  # bins per factor of two: from "about as dear" down to neighbouring years


class TabularAttributes:
    """Categories and numbers hashed into one vector; every column that an item has weighs the same.

    A category counts as itself, "Action|Comedy" as two. A number lies softly in bins of a logarithmic scale at four
    resolutions, so that near numbers are near. A cell without a value adds nothing. Since nothing is learned from a
    catalogue, new items and new categories map the same way.

    Args:
        columns: what to read; None reads all columns that the items call "category" or "number".
        dim: width of a vector.
        separator: what divides several categories in one cell; None takes cells whole.
    """

    block = "attributes"

    def __init__(self, *, columns: Sequence[str] | None = None, dim: int = 256, separator: str | None = "|") -> None:
        self.columns = columns
        self.dim = dim
        self.separator = separator

    @property
    def column(self) -> Sequence[str]:
        """The columns it reads; empty where that follows from the items."""
        return tuple(self.columns or ())

    @property
    def name(self) -> str:
        """Settings and version of the hashing."""
        return f"TabularAttributes/{self.dim}/{self.separator or ''}/1"

    def values(self, items: Items) -> list[Mapping[str, Any] | None]:
        """{column: number or text} of the cells that each item has; None where all are empty."""
        names = self.columns
        if names is None:
            names = [c for c in items.columns.columns if items.kinds.get(c) in ("category", "number")]
        if not names:
            raise InputError("the items have no column of kind 'category' or 'number'; name some in columns=[...]")
        frame = columns_of(items, names)
        cells = {str(c): [_cell(v, items.kinds.get(c)) for v in frame[c].tolist()] for c in frame.columns}
        rows = ({c: v[i] for c, v in cells.items() if v[i] is not None} for i in range(len(items)))
        return [row or None for row in rows]

    def encode(self, values: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order; rows have about unit length."""
        from sklearn.feature_extraction import FeatureHasher

        hasher = FeatureHasher(n_features=self.dim, input_type="pair", dtype=np.float64)
        counts = hasher.transform([list(self._tokens(value)) for value in values])
        return np.asarray(counts.toarray(), np.float32)

    def _tokens(self, cells: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        share = 1 / math.sqrt(len(cells))
        for column, value in cells.items():
            if isinstance(value, float):
                for token, weight in _bins(value):
                    yield f"{column}#{token}", share * weight
                continue
            parts = value.split(self.separator) if self.separator else [value]
            labels = sorted({part.strip() for part in parts} - {""}) or [value]
            for label in labels:
                yield f"{column}={label}", share / math.sqrt(len(labels))

    def why(self, value: Any) -> str:
        """A sentence on cells whose vector is not finite."""
        return f"the cells {value!r} gave a vector that is not finite"

    def spec(self) -> dict[str, Any]:
        """Plain JSON from which `encoder_from_spec` builds the same encoder."""
        columns = None if self.columns is None else list(self.columns)
        return {"class": "TabularAttributes", "columns": columns, "dim": self.dim, "separator": self.separator}


def _cell(value: Any, kind: str | None) -> float | str | None:
    """A float for a number, text for a category, None for an empty cell or a number that is none."""
    if isinstance(value, (list, tuple, set, frozenset)):
        value = "|".join(str(v) for v in value)
    if is_missing(value):
        return None
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))
    if kind == "number" or (kind is None and is_number):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return number if math.isfinite(number) else None
    # A column of whole numbers with a gap turns into floats; 5 and 5.0 are the same label.
    return str(int(value)) if is_number and float(value).is_integer() else str(value).strip()


def _bins(number: float) -> Iterator[tuple[str, float]]:
    """(bin, weight) at each resolution, of unit length together; logarithmic beyond 0.01, linear within."""
    level = math.asinh(number / 0.01) / math.log(2)
    for resolution in _RESOLUTIONS:
        place = level * resolution
        low = math.floor(place)
        upper = place - low
        norm = math.sqrt(len(_RESOLUTIONS) * (upper**2 + (1 - upper) ** 2))
        yield f"{resolution}:{low}", (1 - upper) / norm
        yield f"{resolution}:{low + 1}", upper / norm
