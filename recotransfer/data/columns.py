"""Prepare the item columns that filters read, one row per item of a catalogue."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd

from recotransfer.arguments import checked
from recotransfer.data.ids import IdMap
from recotransfer.data.items import Items

_AS_TEXT = {UUID, time, timedelta, pd.Timedelta}  # types that filters cannot compare, and read as text
_LISTS = (list, tuple, set, frozenset, np.ndarray)
_PLAIN = {str, bool, int, float, date, datetime, pd.Timestamp, Decimal}


@checked
def filter_columns(items: Items, ids: IdMap) -> pd.DataFrame:
    """The columns of `items` that filters can read and files can store, one row per id.

    Each column has cells of one plain type, or lists. Cells of mixed types become text; columns of bytes or images are
    left out. The row of an unknown id is empty.
    """
    columns = {}
    for name in items.columns:
        values = _plain(items.columns[name])
        if values is not None:
            columns[name] = values

    plain = pd.DataFrame(columns, index=items.columns.index)
    at = items.ids.positions(ids.ids, missing="negative")

    return plain.reindex(at).reset_index(drop=True)  # a default index has no label -1, so these rows are empty


def _plain(values: pd.Series) -> pd.Series | None:
    """The column converted to cells of one plain type or lists of plain values; None if that is impossible."""
    if isinstance(values.dtype, pd.SparseDtype):
        values = pd.Series(np.asarray(values), index=values.index)
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.categories.dtype == object:
        values = values.astype(object)
    if values.dtype.kind == "c":  # complex numbers
        return values.map(str, na_action="ignore")
    if values.dtype != object:
        return values

    lists = values.map(lambda cell: isinstance(cell, _LISTS))
    if lists.any():
        cells = values.where(lists | values.isna(), values.map(lambda cell: [cell]))
        cells = cells.map(lambda cell: [_scalar(v) for v in cell] if isinstance(cell, _LISTS) else None)
        inner = {type(v) for cell in cells if cell is not None for v in cell}
        return cells if inner <= _PLAIN | _AS_TEXT | {type(None)} else None

    values = values.map(_scalar, na_action="ignore")
    types = set(map(type, values.dropna()))
    if not types <= _PLAIN | _AS_TEXT:
        return None

    same = types <= _PLAIN and (len(types) < 2 or types <= {int, float})
    return values if same else values.map(str, na_action="ignore")


def _scalar(value: object) -> object:
    """A numpy scalar as a Python value; numpy dates and anything else unchanged."""
    is_time = isinstance(value, (np.datetime64, np.timedelta64))
    return value.item() if isinstance(value, np.generic) and not is_time else value


@checked
def extended_columns(columns: pd.DataFrame, ids: IdMap, items: Items | None) -> pd.DataFrame:
    """Add rows to `columns` for new items at the end of a catalogue.

    Args:
        columns: the existing rows, from `filter_columns`.
        ids: the extended catalogue, which begins with the ids of the existing rows.
        items: content of the new items, converted to the types of the existing columns; other columns are ignored. Ids
            that it lacks get empty cells, and so do all if it is None.
    """
    new = ids.ids[len(columns) :]
    if not len(new):
        return columns

    cells = pd.DataFrame(index=range(len(new))) if items is None else filter_columns(items, IdMap(new))
    added = {name: _in_type_of(cells.get(name), columns[name]) for name in columns}

    return pd.concat([columns, pd.DataFrame(added, index=range(len(new)))], ignore_index=True)


def _in_type_of(new: pd.Series | None, old: pd.Series) -> pd.Series | None:
    """The new cells converted to the type of the column to which they are appended; None if there are none."""
    if new is None:
        return None

    example = next(iter(old.dropna().head(1)), None)
    if isinstance(example, str):
        return new.map(str, na_action="ignore")
    if pd.api.types.is_numeric_dtype(old) and not pd.api.types.is_bool_dtype(old):
        return pd.to_numeric(new, errors="coerce")

    return new
