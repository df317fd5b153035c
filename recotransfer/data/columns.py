"""The item columns that filters read, one row per item of a catalogue."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd

from recotransfer.arguments import checked
from recotransfer.data.ids import IdMap
from recotransfer.data.items import Items

_AS_TEXT = {UUID, time, timedelta, pd.Timedelta}  # plain as well, but no filter compares them
_LISTS = (list, tuple, set, frozenset, np.ndarray)
_PLAIN = {str, bool, int, float, date, datetime, pd.Timestamp, Decimal}


@checked
def filter_columns(items: Items, ids: IdMap) -> pd.DataFrame:
    """(len(ids), columns) what a filter can read of `items` and a file can hold; empty cells for ids it lacks.

    A column has one plain type, or cells that are lists: cells of several types become text, columns of bytes and
    pictures are left out.
    """
    found = {}
    for name in items.columns:
        values = _plain(items.columns[name])
        if values is not None:
            found[name] = values

    plain = pd.DataFrame(found, index=items.columns.index)
    at = items.ids.positions(ids.ids, missing="negative")

    return plain.reindex(at).reset_index(drop=True)  # -1 is no label of a default index, so such rows are empty


def _plain(values: pd.Series) -> pd.Series | None:
    """The column with cells of one plain type or lists of such; None where it holds anything else."""
    if isinstance(values.dtype, pd.SparseDtype):
        values = pd.Series(np.asarray(values), index=values.index)
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.categories.dtype == object:
        values = values.astype(object)
    if values.dtype.kind == "c":
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
    """Python's form of a scalar of numpy; anything else as it is."""
    dated = isinstance(value, (np.datetime64, np.timedelta64))
    return value.item() if isinstance(value, np.generic) and not dated else value


@checked
def extended_columns(columns: pd.DataFrame, ids: IdMap, items: Items | None) -> pd.DataFrame:
    """`columns`, whose rows are the first of `ids`, with a row for each further id.

    Args:
        columns: as `filter_columns` returned them.
        ids: the catalogue as it is now.
        items: cells of further ids, turned into the type of the column they join; columns of other names are left out.
            Ids it lacks, or all where it is None, have empty cells.
    """
    new = ids.ids[len(columns) :]
    if not len(new):
        return columns

    cells = pd.DataFrame(index=range(len(new))) if items is None else filter_columns(items, IdMap(new))
    added = {name: _joining(cells.get(name), columns[name]) for name in columns}

    return pd.concat([columns, pd.DataFrame(added, index=range(len(new)))], ignore_index=True)


def _joining(new: pd.Series | None, old: pd.Series) -> pd.Series | None:
    """New cells in the type of the column they join; None where there are none."""
    if new is None:
        return None

    example = next(iter(old.dropna().head(1)), None)
    if isinstance(example, str):
        return new.map(str, na_action="ignore")
    if pd.api.types.is_numeric_dtype(old) and not pd.api.types.is_bool_dtype(old):
        return pd.to_numeric(new, errors="coerce")

    return new
