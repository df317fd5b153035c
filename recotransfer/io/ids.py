"""Read id columns: undo what other programs did to the ids, find missing ones, and compare them with known ids."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import IdMap
from recotransfer.data.ids import id_index
from recotransfer.data.matching import match_ids
from recotransfer.errors import InputError
from recotransfer.io.report import Table

# Spellings of a missing id, unless the other table has an id of this name.
_MISSING_IDS = {
    "", "none", "null", "nan", "nat", "na", "n/a", "#n/a", "<na>", "\\n", "nil", "undefined",
}  # fmt: skip


@dataclass(frozen=True)
class CleanIds:
    """The ids of a column, (n,) bool marking missing ones, and messages on what was changed."""

    values: pd.Series
    missing: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def clean_ids(values: pd.Series, known: IdMap | None = None) -> CleanIds:
    """The column's ids, with typical changes made by other programs undone.

    Whole floats and decimals (5.0, Decimal("5")) become integers, text such as "5.0" becomes "5" if all ids are whole
    numbers, spaces around text are removed, and words such as "nan" and "None" count as missing.

    Args:
        values: the column.
        known: ids of the other table, which are left unchanged.

    Raises:
        TypeError: the column holds values that cannot be ids, such as lists.
    """
    missing = values.isna().to_numpy().copy()

    # pandas turns integers with gaps into floats, which are exact below 2**53.
    if values.dtype.kind == "f":
        missing |= ~np.isfinite(values.to_numpy(np.float64, na_value=np.nan))
        whole = values[~missing]
        if len(whole) and (whole == np.floor(whole)).all() and (whole.abs() < 2**53).all():
            values = values.where(~missing).astype("Int64")

        return CleanIds(values, missing)

    if values.dtype != object and not isinstance(values.dtype, pd.StringDtype):
        pd.unique(values)  # raises for values that cannot be ids
        return CleanIds(values, missing)

    # Each distinct id is cleaned once; known ids are not touched.
    codes, distinct = pd.factorize(values)
    ids = list(distinct)
    if known is None or not len(known):
        unknown = list(range(len(ids)))
    else:
        unknown = np.flatnonzero(known.positions(id_index(ids), missing="negative") < 0).tolist()

    cleaned = [*ids, None]  # a missing value has code -1, which takes the None at the end
    for i in unknown:
        cleaned[i] = _clean_id(ids[i])

    notes = []
    missing_words = [ids[i] for i in unknown if cleaned[i] is None and str(ids[i]).strip()]
    if missing_words:
        notes.append(f"cells such as {missing_words[0]!r} were read as missing ids")

    # Text such as "5.0" is an integer that was a float on its way here, unless some other id is not a whole number.
    texts = [i for i in unknown if isinstance(cleaned[i], str)]
    whole_floats = [i for i in texts if re.fullmatch(r"-?\d+\.0+", cleaned[i], re.ASCII)]
    if whole_floats and all(cleaned[i].lstrip("-").isdigit() for i in set(texts) - set(whole_floats)):
        example = cleaned[whole_floats[0]]
        notes.append(f"ids such as {example!r} were converted to whole numbers such as {example.split('.')[0]!r}")
        for i in whole_floats:
            cleaned[i] = cleaned[i].split(".")[0]

    changed = [i for i in unknown if cleaned[i] is not ids[i]]
    if not changed:
        return CleanIds(values, missing, tuple(notes))

    spaced = [i for i in changed if isinstance(ids[i], str) and cleaned[i] == ids[i].strip() != ids[i]]
    if spaced:
        notes.append(f"spaces around ids such as {ids[spaced[0]]!r} were removed")

    array = np.empty(len(cleaned), dtype=object)
    array[:] = cleaned
    out = pd.Series(array[codes], index=values.index, dtype=object)
    missing = np.array([value is None for value in cleaned], bool)[codes]

    return CleanIds(out, missing, tuple(notes))


def _clean_id(value: Any) -> Any:
    """The cleaned id, or None if it is missing."""
    if isinstance(value, str):
        bare = value.strip()
        if bare.lower() in _MISSING_IDS:
            return None

        return value if bare == value else bare

    if isinstance(value, (float, np.floating, Decimal)):
        if not math.isfinite(value):
            return None

        return int(value) if value == int(value) else value

    return value


def settled_ids(values: pd.Series) -> pd.Series:
    """Ids, none of them missing, in their most specific type: int64, str, or object if they are mixed."""
    if values.dtype == object:
        types = {type(value) for value in values}
        return values.infer_objects() if len(types) == 1 else values

    if pd.api.types.is_integer_dtype(values) and (values.dtype.kind != "u" or values.max() < 2**63):
        return values.astype(np.int64)

    return values


def take_ids(table: Table, column: str, role: str, known: IdMap | None = None) -> pd.Series:
    """The column's cleaned ids, one per row; rows without an id are dropped from the table.

    Args:
        table: the table.
        column: its id column.
        role: "user" or "item", for messages.
        known: as in `clean_ids`.
    """
    try:
        ids = clean_ids(table.frame[column], known)
    except TypeError as cause:
        raise InputError(
            f"{table.name}: column {column!r} holds values that cannot be ids ({cause}); use text or numbers"
        ) from None

    table.notes += [f"column {column!r}: {note}" for note in ids.notes]
    table.drop(ids.missing, f"missing {role} id", column, f"fill in the {role}")

    return ids.values


def distinct_ids(values: pd.Series) -> pd.Index:
    """The column's distinct cleaned ids; empty if its values cannot be ids."""
    try:
        clean = clean_ids(values)
    except TypeError:  # lists and other values that cannot be ids
        return pd.Index([])

    index: pd.Index = pd.Index(settled_ids(clean.values[~clean.missing]).unique())

    return index


def share_known(ids: NDArray[Any], known: IdMap) -> float:
    """Share of the ids that are known, 0 to 1, after conversion between types."""
    if not len(ids):
        return 0.0

    return float((known.positions(match_ids(ids, known).ids, missing="negative") >= 0).mean())


def share_in(known: IdMap, values: pd.Series) -> float:
    """Share of a column's distinct ids that are known, 0 to 1."""
    return share_known(np.asarray(distinct_ids(values)), known)
