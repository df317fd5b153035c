"""Matching of ids whose types differ between sources: 5, "5", 5.0 and Decimal("5") are one id, "005" another."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer.arguments import checked
from recotransfer.data.ids import IdMap, id_index
from recotransfer.errors import InputError

_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DIGITS = re.compile(r"\d+", re.ASCII)


@dataclass(frozen=True)
class MatchedIds:
    """Ids converted to the types of known ids.

    Attributes:
        ids: (n,) the ids in the given order; those that mean a known id are replaced by it.
        notes: messages on what was converted, and on ids that differ from known ones only by leading zeros.
        mixed: a message on ids that cannot be converted exactly to the type of the known ids and so were kept; or None.
    """

    ids: pd.Index
    notes: tuple[str, ...] = ()
    mixed: str | None = None


def match_ids(ids: Iterable[Any] | pd.Index, known: IdMap) -> MatchedIds:
    """`ids` in the types of `known`: each is converted exactly ("5" or 5.0 to 5, never "005" to 5) or left unchanged.

    If all known ids have one type, unknown ids are converted to it too, so that a new user 6 who also appears as "6" is
    one user.

    >>> match_ids(["5", "6", 7.0], IdMap([5, 7])).ids.tolist()
    [5, 6, 7]
    >>> match_ids(["005"], IdMap([5])).notes
    ("ids such as '005' differ from known ids such as 5 by leading zeros only, and were not matched",)
    """
    given = id_index(ids)
    if not len(given) or not len(known):
        return MatchedIds(given)

    here, there = types_of(given), types_of(id_index(known.ids))
    at = known.positions(given, missing="negative")
    lost = np.flatnonzero(at < 0)
    if here == there and len(lost) < len(given):
        return MatchedIds(given, _zeros(given[lost], known))

    spelt = _by_plain_form(known)
    values = [own if i < 0 else same for i, own, same in zip(at, given, known.take(at), strict=True)]
    wanted = next(iter(there)) if len(there) == 1 else None
    changed: list[tuple[Any, Any]] = []
    foreign: list[Any] = []

    for i in lost.tolist():
        plain = plain_form(values[i])
        same = spelt.get(plain) if plain is not None else None
        if same is None and wanted is not None and type(values[i]) is not wanted:
            same = _exact(values[i], plain, wanted)
            if same is None:
                foreign.append(values[i])

        if same is not None:
            changed.append((values[i], same))
            values[i] = same

    notes: tuple[str, ...] = ()
    if changed:
        one, other = changed[0]
        notes = (
            f"{len(changed):,} ids were converted from {type(one).__name__} to the known ids' {type(other).__name__}, "
            f"for example {one!r} to {other!r}",
        )

    mixed = None
    if foreign:
        mixed = (
            f"ids are of mixed types: known ones are {_type_name(wanted)} such as {known.ids[:1].tolist()[0]!r}, and "
            f"{len(foreign):,} new ones are {type(foreign[0]).__name__} such as {foreign[0]!r}"
        )

    out = id_index(values)

    return MatchedIds(out, (*notes, *_zeros(out[lost], known)), mixed)


@checked
def ids_like(ids: IdMap, known: IdMap, role: str, *, foreign: bool = False) -> IdMap:
    """The ids converted to the types of `known`, in the same order; `ids` itself if there is nothing to convert.

    With `foreign`, ids that cannot be converted are kept, because they need not be known.

    Raises:
        InputError: ids cannot be converted exactly to the type of the known ids, or two become the same id.
    """
    if ids.dtype == known.dtype and ids.dtype != object:
        return ids

    matched = match_ids(ids.ids, known)
    if matched.mixed and not foreign:
        raise InputError(f"{role} {matched.mixed}; write all of them in one type")

    return ids if matched.ids.equals(id_index(ids.ids)) else IdMap(matched.ids)


@checked
def positions_like(ids: ArrayLike | pd.Index, known: IdMap) -> NDArray[np.int64]:
    """(len(ids),) positions of `ids`, converted to the types of `known`; raises `UnknownIdError` for unknown ids."""
    at = known.positions(ids, missing="negative")
    return at if (at >= 0).all() else known.positions(match_ids(id_index(ids), known).ids)


def mixed_types(ids: pd.Index) -> tuple[str, ...]:
    """Messages on distinct ids of a column that may be one id written in two ways: 5 and "5", or "5" and "005"."""
    notes: list[str] = []
    kinds: dict[type, Any] = {}
    if ids.dtype == object:
        for value in ids:
            kinds.setdefault(_family(value), value)

    if len(kinds) > 1:
        shown = " and ".join(f"{type(v).__name__} such as {v!r}" for v in kinds.values())
        same = spelt_twice(ids)
        also = f"; {same[0]!r} and {same[1]!r} count as different ids" if same else ""
        notes.append(f"ids are of mixed types: {shown}{also}; write all of them in one type")

    if ids.dtype != object and not isinstance(ids.dtype, pd.StringDtype):
        return tuple(notes)

    text = [v for v in ids if isinstance(v, str)]
    padded = {v.lstrip("0") or "0": v for v in text if len(v) > 1 and v[0] == "0" and _DIGITS.fullmatch(v)}
    if padded and (plain := next((v for v in ids if plain_form(v) in padded and v not in padded.values()), None)):
        other = padded[str(plain_form(plain))]
        notes.append(f"ids such as {plain!r} and {other!r} differ by leading zeros only, and count as different ids")

    return tuple(notes)


def spelt_twice(ids: pd.Index) -> tuple[Any, Any] | None:
    """Two of the distinct ids that are one id in two types, such as 5 and "5"; None if there are none."""
    if ids.dtype != object:
        return None

    forms = pd.Series([plain_form(value) for value in ids], dtype=object)
    twice = forms.duplicated(keep=False) & forms.notna()
    if not twice.any():
        return None

    first, second = ids[(forms == forms[twice].iloc[0]).to_numpy()][:2]

    return first, second


def types_of(ids: pd.Index) -> set[type]:
    """The Python types of the ids; numpy scalars count as Python's."""
    if isinstance(ids.dtype, pd.StringDtype):
        return {str}
    if ids.dtype.kind in "iu":
        return {int}
    if ids.dtype.kind == "f":
        return {float}

    return {type(v.item()) if isinstance(v, np.generic) else type(v) for v in ids}


def plain_form(value: object) -> str | None:
    """The text that equal ids of different types share; None for values that have no such text."""
    if isinstance(value, str):
        whole = _WHOLE_FLOAT.fullmatch(value)
        return whole[1] if whole else value.lower() if _UUID.fullmatch(value) else value

    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer, UUID)):
        return str(value)

    if isinstance(value, (float, np.floating, Decimal)):
        if not math.isfinite(value):
            return None

        return str(int(value)) if value == int(value) else str(value)

    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None

    return None


def _family(value: object) -> type:
    """The type of an id, with all numbers as float, because 5 and 5.0 are equal and count as one id."""
    numeric = isinstance(value, (int, float, Decimal, np.number)) and not isinstance(value, (bool, np.bool_))
    return float if numeric else str if isinstance(value, str) else type(value)


def _type_name(kind: type | None) -> str:
    return "of several types" if kind is None else kind.__name__


def _by_plain_form(known: IdMap) -> dict[str, Any]:
    """Plain form -> known id, without forms that several ids share, such as 5 and "5"."""
    spelt: dict[str, Any] = {}
    shared = set()

    for value in known.ids.tolist():
        plain = plain_form(value)
        if plain is None:
            continue
        if plain in spelt:
            shared.add(plain)
        spelt[plain] = value

    return {plain: value for plain, value in spelt.items() if plain not in shared}


def _exact(value: object, plain: str | None, wanted: type) -> Any:
    """The id converted to the type `wanted` if that is exact, else None."""
    if plain is None:
        return None
    if wanted is str:
        return plain
    if wanted is int and re.fullmatch(r"0|-?[1-9]\d{0,17}", plain, re.ASCII):
        return int(plain)
    if wanted is UUID and _UUID.fullmatch(plain):
        return UUID(plain)

    return None


def _zeros(lost: pd.Index, known: IdMap) -> tuple[str, ...]:
    """A message if unknown ids would be known without their leading zeros."""
    digits = [v for v in lost if (plain := plain_form(v)) is not None and _DIGITS.fullmatch(plain)]
    if not digits:
        return ()

    stripped: dict[str, Any] = {}
    for value in known.ids.tolist():
        plain = plain_form(value)
        if plain is not None and _DIGITS.fullmatch(plain):
            stripped.setdefault(plain.lstrip("0"), value)

    for value in digits:
        other = stripped.get(str(plain_form(value)).lstrip("0"))
        if other is not None and plain_form(other) != plain_form(value):
            return (
                f"ids such as {value!r} differ from known ids such as {other!r} by leading zeros only, and were not "
                "matched",
            )

    return ()
