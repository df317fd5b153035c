"""Attribute encoders: table columns as one vector, either hashed or standardised by the statistics of a table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import columns_of, encoder_spec, is_missing
from recotransfer.errors import InputError, require
from recotransfer.settings import PositiveInt

_MAX_CATEGORIES = 10  # a number with at most so many distinct values, all integers, is encoded as a category too
_CLIP = 4.0  # standard deviations at which numbers are clipped
_NUMBER_SCALE = 0.3  # length of a number one standard deviation from the mean, relative to 1 for a category
_RESOLUTIONS = (2, 12, 72, 432)  # bins per factor of two: from similar prices down to neighbouring years


@checked_class
class TabularAttributes:
    """Hashes categories and numbers into one vector, in which all columns that an item has weigh the same.

    Each category is a feature of its own; "Action|Comedy" counts as two. A number is softly assigned to bins of a
    logarithmic scale at four resolutions, so that similar numbers have similar vectors. Missing cells contribute
    nothing. Nothing is fitted, so new items and new categories are encoded in the same way.

    Args:
        columns: columns to read; None reads all columns of kind "category" or "number".
        dim: width of a vector.
        separator: separates several categories in one cell; None takes cells as a whole.
    """

    modality = "attributes"

    def __init__(
        self, *, columns: Sequence[str] | None = None, dim: PositiveInt = 256, separator: str | None = "|"
    ) -> None:
        self.columns = columns
        self.dim = dim
        self.separator = separator

    @property
    def column(self) -> Sequence[str]:
        """The columns that the encoder reads; empty if it takes all that the items have."""
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
            raise InputError("the items have no column of kind 'category' or 'number'; name columns in columns=[...]")

        frame = columns_of(items, names)
        cells = {str(c): [_cell(v, items.kinds.get(c)) for v in frame[c].tolist()] for c in frame.columns}
        rows = ({c: v[i] for c, v in cells.items() if v[i] is not None} for i in range(len(items)))

        return [row or None for row in rows]

    def encode(self, values: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order; rows have about unit length."""
        FeatureHasher = require("sklearn.feature_extraction").FeatureHasher
        if not len(values):
            return np.zeros((0, self.dim), np.float32)

        hasher = FeatureHasher(n_features=self.dim, input_type="pair", dtype=np.float64)
        counts = hasher.transform([list(self._tokens(value)) for value in values])
        return np.asarray(counts.toarray(), np.float32)

    def _tokens(self, cells: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """(feature, weight) of an item's cells; the squared weights of each column sum to the same number."""
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

    def explain_failure(self, value: object) -> str:
        """Why cells could not be encoded, in a sentence."""
        return f"the cells {value!r} gave a vector that is not finite"


@checked_class
class StandardTable:
    """Standardised numbers and one-hot categories, for small tables in which every column matters.

    A category is its one-hot vector minus the shares of all categories, scaled to length 1. Numbers are scaled down
    relative to that, so that normalising rows, as `Fusion` does, distorts them little; a model on these vectors should
    rescale columns, as `Probe` does. Missing cells and unlisted categories contribute nothing. For tables of many
    categories or many rows use `TabularAttributes`, which needs no statistics.

    Args:
        numbers: column -> (mean, standard deviation).
        categories: column -> {category: share of the rows}. A column may be a number and a category at once.
    """

    modality = "attributes"

    def __init__(
        self, *, numbers: Mapping[str, Sequence[float]], categories: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.numbers = numbers
        self.categories = categories

    @classmethod
    def of(cls, items: Items) -> StandardTable:
        """Build an encoder from the statistics of these items.

        Numbers with 3 to 10 distinct values, all of them integers, are encoded as categories too.
        """
        numbers, categories = {}, {}
        for column in items.columns.columns:
            kind = items.kinds.get(column)
            if kind not in ("category", "number"):
                continue

            cells = [c for c in (_cell(v, kind) for v in items.columns[column].tolist()) if c is not None]
            if kind == "number" and cells:
                values = np.asarray(cells, np.float64)
                numbers[str(column)] = (float(values.mean()), float(values.std()))

            names, counts = np.unique([_label(c) for c in cells], return_counts=True)
            whole = all(isinstance(c, str) or c.is_integer() for c in cells)
            if kind == "category" or (whole and 2 < len(names) <= _MAX_CATEGORIES):
                shares = (counts / max(len(cells), 1)).tolist()
                categories[str(column)] = dict(zip(names.tolist(), shares, strict=True))

        return cls(numbers=numbers, categories=categories)

    @property
    def column(self) -> Sequence[str]:
        """The columns that the encoder reads."""
        return tuple(dict.fromkeys([*self.numbers, *self.categories]))

    @property
    def name(self) -> str:
        """Hash of the settings; part of the cache key."""
        spec = encoder_spec(self)
        settings = json.dumps([spec["numbers"], spec["categories"]], sort_keys=True)
        return f"StandardTable/{hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()}/1"

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return len(self.numbers) + sum(len(shares) for shares in self.categories.values())

    def values(self, items: Items) -> list[Mapping[str, Any] | None]:
        """{column: number or text} of the cells that each item has; None where all are empty."""
        if not self.dim:
            raise InputError(
                "StandardTable has no column with a value; give numbers or categories, or use StandardTable.of(items)"
            )

        frame = columns_of(items, self.column)
        kinds = {c: "number" if c in self.numbers else "category" for c in self.column}
        cells = {c: [_cell(v, kinds[c]) for v in frame[c].tolist()] for c in self.column}
        rows = ({c: v[i] for c, v in cells.items() if v[i] is not None} for i in range(len(items)))

        return [row or None for row in rows]

    def encode(self, values: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order."""
        columns: list[NDArray[np.float64]] = []  # sorted by name, because a file may reorder the settings
        for column, (mean, spread) in sorted(self.numbers.items()):
            cells = np.array([value.get(column, mean) for value in values], np.float64)
            standardised = np.clip((cells - mean) / (spread or 1.0), -_CLIP, _CLIP)
            columns.append(_NUMBER_SCALE * standardised[:, None])

        for column, unsorted in sorted(self.categories.items()):
            if not unsorted:  # no row of the table had a value
                continue

            shares = dict(sorted(unsorted.items()))
            place = {name: at for at, name in enumerate(shares)}
            which = np.array([place.get(_label(value.get(column)), -1) for value in values], np.int64)
            codes = np.eye(len(shares)) - np.array(list(shares.values()))
            codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
            columns.append(np.where(which[:, None] >= 0, codes[which], 0))

        return np.hstack(columns).astype(np.float32)

    def explain_failure(self, value: object) -> str:
        """Why cells could not be encoded, in a sentence."""
        return f"the cells {value!r} gave a vector that is not finite"


def _label(cell: float | str | None) -> str:
    """A cell as the name of a category; 3.0 is "3"."""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def _cell(value: Any, kind: str | None) -> float | str | None:
    """A float for a number, text for a category, None for an empty cell or a number that is not finite."""
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

    # pandas turns an integer column with missing cells into floats, so 5 and 5.0 must be the same category.
    return str(int(value)) if is_number and float(value).is_integer() else str(value).strip()


def _bins(number: float) -> Iterator[tuple[str, float]]:
    """(bin, weight) of the two nearest bins at each resolution; the weights have unit length together.

    The scale is logarithmic, but linear between -0.01 and 0.01, so that zero and negative numbers are on it too.
    """
    level = math.asinh(number / 0.01) / math.log(2)
    for resolution in _RESOLUTIONS:
        position = level * resolution
        low = math.floor(position)
        upper = position - low
        norm = math.sqrt(len(_RESOLUTIONS) * (upper**2 + (1 - upper) ** 2))
        yield f"{resolution}:{low}", (1 - upper) / norm
        yield f"{resolution}:{low + 1}", upper / norm
