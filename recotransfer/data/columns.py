"""The item columns that filters read, one row per item of a catalogue."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

import pandas as pd

from recotransfer.data.ids import IdMap
from recotransfer.data.items import Items

_PLAIN = {str, bool, int, float, date, datetime, pd.Timestamp, Decimal}


def filter_columns(items: Items, ids: IdMap) -> pd.DataFrame:
    """(len(ids), columns) what a filter can read of `items` and a file can hold; empty cells for ids it lacks.

    A column has one plain type: cells of several types become text, columns of bytes or lists are left out.
    """
    found = {}
    for name in items.columns:
        values = items.columns[name]
        types = set(map(type, values.dropna())) if values.dtype == object else set()
        if not types <= _PLAIN:
            continue

        same = len(types) < 2 or types <= {int, float}
        found[name] = values if same else values.map(str, na_action="ignore")

    plain = pd.DataFrame(found, index=items.columns.index)
    at = items.ids.positions(ids.ids, missing="negative")

    return plain.reindex(at).reset_index(drop=True)  # -1 is no label of a default index, so such rows are empty


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
