"""Match ids whose types differ between sources: 5, "5", 5.0 and Decimal("5") are the same id, "005" is another."""

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
        ids: (n,) the ids in the given order, where those that match a known id are replaced by it.
        notes: messages about converted ids, and about ids that differ from known ones only by leading zeros.
        mixed: a message about ids that cannot be converted exactly to the type of the known ids and were kept; or None.
    """

    ids: pd.Index
    notes: tuple[str, ...] = ()
    mixed: str | None = None


def match_ids(ids: Iterable[Any] | pd.Index, known: IdMap) -> MatchedIds:
    """Convert `ids` to the types of `known`: exactly ("5" or 5.0 to 5, never "005" to 5), or not at all.

    If all known ids have one type, unknown ids are converted to it too, so that a new user who appears as 6 and as "6"
    is one user.

    >>> match_ids(["5", "6", 7.0], IdMap([5, 7])).ids.tolist()
    [5, 6, 7]
    >>> match_ids(["005"], IdMap([5])).notes
    ("ids such as '005' differ from known ids such as 5 by leading zeros only, and were not matched",)
    """
    given = id_index(ids)
    if not len(given) or not len(known):
        return MatchedIds(given)

    given_types, known_types = types_of(given), types_of(id_index(known.ids))
    at = known.positions(given, missing="negative")
    unknown = np.flatnonzero(at < 0)
    if given_types == known_types and len(unknown) < len(given):  # the same ids, some of them new
        return MatchedIds(given, _zeros(given[unknown], known))

    by_plain_form = _by_plain_form(known)
    values = [new if i < 0 else match for i, new, match in zip(at, given, known.take(at), strict=True)]
    wanted = next(iter(known_types)) if len(known_types) == 1 else None
    converted: list[tuple[Any, Any]] = []
    foreign: list[Any] = []

    for i in unknown.tolist():
        plain = plain_form(values[i])
        match = by_plain_form.get(plain) if plain is not None else None
        if match is None and wanted is not None and type(values[i]) is not wanted:
            match = _exact(values[i], plain, wanted)
            if match is None:
                foreign.append(values[i])

        if match is not None:
            converted.append((values[i], match))
            values[i] = match

    notes: tuple[str, ...] = ()
    if converted:
        before, after = converted[0]
        notes = (
            f"{len(converted):,} ids were converted from {type(before).__name__} to the known ids' "
            f"{type(after).__name__}, for example {before!r} to {after!r}",
        )

    mixed = None
    if foreign:
        mixed = (
            f"ids are of mixed types: known ones are {_type_name(wanted)} such as {known.ids[:1].tolist()[0]!r}, and "
            f"{len(foreign):,} new ones are {type(foreign[0]).__name__} such as {foreign[0]!r}"
        )

    out = id_index(values)

    return MatchedIds(out, (*notes, *_zeros(out[unknown], known)), mixed)


@checked
def ids_like(ids: IdMap, known: IdMap, role: str, *, foreign: bool = False) -> IdMap:
    """The ids converted to the types of `known`, in the same order; `ids` itself if there is nothing to convert.

    Args:
        ids: the ids to convert.
        known: the ids whose types they should have.
        role: what the ids are, such as "user", for messages.
        foreign: keep ids that cannot be converted, instead of raising an error.

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
    """(len(ids),) positions in `known` of `ids`, converted to its types; raises `UnknownIdError` for unknown ids."""
    at = known.positions(ids, missing="negative")
    return at if (at >= 0).all() else known.positions(match_ids(id_index(ids), known).ids)


def mixed_types(ids: pd.Index) -> tuple[str, ...]:
    """Messages about distinct ids of a column that may be one id written in two ways: 5 and "5", or "5" and "005"."""
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
    """The first two distinct ids that are one id in two types, such as 5 and "5"; None if there are none."""
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
    """A text that is the same for all forms of one id, such as "5" for 5, "5" and 5.0; None for other types."""
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
    by_form: dict[str, Any] = {}
    shared = set()

    for value in known.ids.tolist():
        plain = plain_form(value)
        if plain is None:
            continue
        if plain in by_form:
            shared.add(plain)
        by_form[plain] = value

    return {plain: value for plain, value in by_form.items() if plain not in shared}


def _exact(value: object, plain: str | None, wanted: type) -> Any:
    """The id converted to the type `wanted` if that is exact, else None."""
    if plain is None:
        return None
    if wanted is str:
        return plain
    if wanted is int and re.fullmatch(r"0|-?[1-9]\d{0,17}", plain, re.ASCII):  # fits into int64
        return int(plain)
    if wanted is UUID and _UUID.fullmatch(plain):
        return UUID(plain)

    return None


def _zeros(unknown: pd.Index, known: IdMap) -> tuple[str, ...]:
    """A message if unknown ids would be known without their leading zeros, or with more of them."""
    digits = [v for v in unknown if (plain := plain_form(v)) is not None and _DIGITS.fullmatch(plain)]
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
