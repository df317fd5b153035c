"""`Items`: the raw content of a catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data.ids import IdMap, preview
from recotransfer.errors import InputError

ColumnKind = Literal["text", "image", "category", "number"]


@checked_class
@dataclass(frozen=True)
class Items:
    """The catalogue's raw content, one row per item.

    Attributes:
        ids: the items, in row order.
        columns: a frame with one row per item; None or NaN marks a missing value.
        kinds: column -> kind of its content. Encoders ignore columns without a kind; filters and output can use them.

    Raises:
        InputError: the numbers of ids and rows differ, or a column name is repeated or unknown.
    """

    ids: IdMap
    columns: pd.DataFrame
    kinds: Mapping[str, ColumnKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.columns):
            raise InputError(f"{len(self.ids)} ids but {len(self.columns)} rows of columns; give one row per id")

        if not self.columns.columns.is_unique:
            twice = self.columns.columns[self.columns.columns.duplicated()]
            raise InputError(f"column names must be unique; these occur twice: {preview(twice.unique())}")

        object.__setattr__(self, "columns", self.columns.reset_index(drop=True))
        if lost := set(self.kinds) - set(self.columns.columns):
            raise InputError(f"kinds names unknown columns {sorted(lost)}; the items have {list(self.columns)}")

    def __len__(self) -> int:
        return len(self.ids)

    def of_kind(self, kind: ColumnKind) -> list[str]:
        """Names of the columns of this kind, in the order of the table."""
        return [c for c in self.columns.columns if self.kinds.get(c) == kind]

    def take(self, positions: NDArray[np.integer]) -> Items:
        """The items at `positions`, in that order."""
        return Items(IdMap(self.ids.take(positions)), self.columns.iloc[positions].reset_index(drop=True), self.kinds)
