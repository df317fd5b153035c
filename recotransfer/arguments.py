"""Run-time checks of the arguments of public functions against their annotations.

`@checked` on a function, `@checked_class` on a class, and `Checked` as the base of a family of classes raise
`InputError` for an argument of the wrong type, in one sentence that names the function, the argument, the value and
what is expected. Annotations are read once, at the first call. An annotation that is not understood accepts every
value. What annotations cannot express, such as shapes and ids, is checked by the functions themselves.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, Union

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pandas.api.extensions import ExtensionArray

from recotransfer.errors import InputError
from recotransfer.settings import Bounds, NonNegativeInt

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_SHOWN = 60  # a value takes up at most this many characters of a message
_TEXT = (str, bytes, bytearray, memoryview)
_ARRAY_MEMBERS = frozenset(typing.get_args(ArrayLike))
# Scalar type of an annotated array -> the kinds of dtype that are accepted, and how to describe them.
_KINDS = ((np.bool_, "biu", "an array of truth values"), (np.integer, "iu", "an array of whole numbers"),
          (np.floating, "fiub", "an array of numbers"))  # fmt: skip
# Type -> how to make a value of it, for messages.
_MADE_BY = {
    "Embeddings": "Embeddings(ids, vectors)",
    "Filter": "Filter(where='price < 20')",
    "IdMap": "IdMap([...])",
    "Interactions": "read_interactions(table).data",
    "Items": "read_items(table).data",
    "Path": "Path('folder')",
    "Recommendations": "recommend(...)",
}


@dataclass(frozen=True)
class Numeric:
    """Marks an array whose values must be numbers: `Annotated[ArrayLike, Numeric()]`."""


@dataclass(frozen=True)
class Unchecked:
    """Marks an argument that the function checks itself, with a more helpful message."""


Numbers: TypeAlias = Annotated[ArrayLike, Numeric()]


class _Check(NamedTuple):
    """The check of one annotation: which values it accepts, and how to describe them in a message."""

    accepts: Callable[[Any], bool]
    expected: str
    element: _Check | None = None  # the check of each element of a list, to name the one that is wrong


# -- decorators --------------------------------------------------------------------------------------------------------


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its arguments checked: `InputError` if one is not of its annotated type."""
    return _checked(function, function.__qualname__, None)


def checked_class(kind: C) -> C:
    """The class with the arguments of its constructor and public methods checked. Goes above `@dataclass`."""
    _check_methods(kind, constructor=True)
    return kind


class Checked:
    """Base of classes whose public methods check their arguments, those of subclasses included.

    Constructors only store their arguments; `settings` checks these when they are used.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _check_methods(cls, constructor=False)


def _check_methods(kind: type, *, constructor: bool) -> None:
    scope = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}

    for name, member in list(vars(kind).items()):
        owner = kind.__name__ if name == "__init__" else f"{kind.__name__}.{name}"
        if name.startswith("_") and not (constructor and name == "__init__"):
            continue
        if inspect.isfunction(member):
            setattr(kind, name, _checked(member, owner, scope))
        elif isinstance(member, (classmethod, staticmethod)):
            setattr(kind, name, type(member)(_checked(member.__func__, owner, scope)))


def _checked(function: Callable[P, R], owner: str, scope: Mapping[str, Any] | None) -> Callable[P, R]:
    """The function with its arguments checked; messages call it `owner`, and `scope` resolves its annotations."""
    checks: list[tuple[list[_Check | None], dict[str, _Check], list[str]]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not checks:  # made at the first call, when every name in the annotations is defined
            checks.append(_checks_of(function, scope))

        by_position, by_name, names = checks[0]
        for at, (check, value) in enumerate(zip(by_position, args, strict=False)):
            if check is not None and not check.accepts(value):
                raise _error(owner, names[at], value, check)

        for name, value in kwargs.items():
            named = by_name.get(name)
            if named is not None and not named.accepts(value):
                raise _error(owner, name, value, named)

        return function(*args, **kwargs)

    return call


def _checks_of(
    function: Callable[..., Any], scope: Mapping[str, Any] | None
) -> tuple[list[_Check | None], dict[str, _Check], list[str]]:
    """The checks of a function's parameters by position and by name, and their names by position."""
    scope = getattr(function, "__globals__", {}) if scope is None else scope
    by_position: list[_Check | None] = []
    by_name: dict[str, _Check] = {}
    names: list[str] = []

    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue

        hint = _resolved(parameter.annotation, scope)
        check = _check(NonNegativeInt if name == "seed" and hint is int else hint)  # numpy takes no negative seed
        if check is not None:
            by_name[name] = check
        if parameter.kind is not parameter.KEYWORD_ONLY:
            by_position.append(check)
            names.append(name)

    return by_position, by_name, names


def _resolved(annotation: object, scope: Mapping[str, Any]) -> Any:
    """The type that an annotation names; `Any` if there is none, or if it is imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation

    try:
        named = types.SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(named, dict(scope), include_extras=True)["it"]
    except (NameError, AttributeError, TypeError):
        return Any


# -- annotations -------------------------------------------------------------------------------------------------------


def _check(hint: object) -> _Check | None:
    """The check for a type; None accepts every value."""
    if hint in (Any, object) or isinstance(hint, (TypeVar, str)) or hint is typing.Self:
        return None
    if hint == ArrayLike:
        return _Check(lambda value: _is_array(value, ""), "a list or an array")

    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _any_of(inside)
    if origin is Literal:
        return _Check(lambda value: any(type(value) is type(one) and value == one for one in inside),
                      _or([repr(one) for one in inside]))  # fmt: skip
    if origin is Annotated:
        return _annotated(inside[0], inside[1:])
    if origin is np.ndarray or hint is np.ndarray:
        return _array(inside)
    if origin is tuple and inside and inside[-1] is not Ellipsis:
        return _fixed_tuple([_check(one) for one in inside])
    if hint in _PLAIN:
        return _PLAIN[hint]

    return _collection(hint, origin or hint, inside)


def _any_of(inside: tuple[Any, ...]) -> _Check | None:
    """The check for a union."""
    if set(inside) >= _ARRAY_MEMBERS:  # unions are flat, so `ArrayLike | X` lists the members of ArrayLike
        inside = (ArrayLike, *(one for one in inside if one not in _ARRAY_MEMBERS))

    checks = [_check(one) for one in inside]
    known = [check for check in checks if check is not None]
    if len(known) < len(checks):
        return None

    tests = tuple(check.accepts for check in known)
    words = list(dict.fromkeys(check.expected for check in known))
    element = next((check.element for check in known if check.element is not None), None)

    return _Check(lambda value: any(test(value) for test in tests), _or(words), element)


def _annotated(hint: object, notes: tuple[Any, ...]) -> _Check | None:
    """The check for `Annotated[hint, *notes]`, where a note may be `Bounds`, `Numeric` or `Unchecked`."""
    if any(isinstance(note, Unchecked) for note in notes):
        return None
    if any(isinstance(note, Numeric) for note in notes):
        return _Check(lambda value: _is_array(value, "fiub"), "a list or an array of numbers")

    check = _check(hint)
    bounds = next((note for note in notes if isinstance(note, Bounds)), None)
    if check is None or bounds is None:
        return check

    accepts, allow = check.accepts, bounds.allow
    return _Check(lambda value: accepts(value) and allow(value), f"{check.expected} {bounds}")


def _array(inside: tuple[Any, ...]) -> _Check:
    """The check for `np.ndarray` and `NDArray[scalar]`."""
    scalar = next(iter(typing.get_args(inside[1])), None) if len(inside) == 2 else None
    scalar = typing.get_origin(scalar) or scalar
    if isinstance(scalar, type):
        for kind, letters, words in _KINDS:
            if issubclass(scalar, kind):
                return _Check(lambda value, letters=letters: _is_array(value, letters), words)  # type: ignore[misc]

    return _Check(lambda value: _is_array(value, ""), "an array")


def _fixed_tuple(checks: list[_Check | None]) -> _Check:
    """The check for a tuple of fixed length; lists are accepted too."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(checks)
            and all(check is None or check.accepts(one) for check, one in zip(checks, value, strict=True))
        )

    words = ["anything" if check is None else check.expected for check in checks]
    return _Check(accepts, f"a tuple of {', '.join(words)}")


def _collection(hint: object, origin: object, inside: tuple[Any, ...]) -> _Check | None:
    """The check for functions, lists and mappings, with their elements, and for instances of other classes."""
    if origin is collections.abc.Callable:
        return _Check(callable, "a function")
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        return _mapping(*(inside or (Any, Any)))
    if origin in (collections.abc.Sequence, tuple, list):
        return _sequence(_check(inside[0]) if inside else None, arrays=origin not in (tuple, list))
    if origin in (collections.abc.Iterable, collections.abc.Collection):
        return _Check(lambda value: isinstance(value, Iterable) and not isinstance(value, (*_TEXT, pd.DataFrame)),
                      "a list")  # fmt: skip
    if origin is type:
        return _Check(lambda value: isinstance(value, type), "a class")
    if getattr(origin, "_is_protocol", False):
        return _protocol(origin)

    return _Check(lambda value: isinstance(value, origin), _a(origin.__name__))


def _mapping(key: object, value: object) -> _Check:
    """The check for a mapping, given the types of its keys and values."""
    keys, values = _check(key), _check(value)

    def accepts(given: object) -> bool:
        return (
            isinstance(given, Mapping)
            and (keys is None or all(map(keys.accepts, given)))
            and (values is None or all(map(values.accepts, given.values())))
        )

    words = ["anything" if check is None else check.expected for check in (keys, values)]
    return _Check(accepts, "a dict" if keys is values is None else f"a dict from {words[0]} to {words[1]}")


def _sequence(element: _Check | None, *, arrays: bool) -> _Check:
    """The check for a list of elements, and for an array of them if `arrays`."""

    def accepts(value: Any) -> bool:
        if not (isinstance(value, (tuple, list)) or (arrays and _is_listlike(value))):
            return False

        return element is None or all(map(element.accepts, value))

    return _Check(accepts, "a list" if element is None else f"a list, each entry {element.expected}", element)


def _protocol(kind: type) -> _Check:
    """The check for objects with the attributes of a protocol.

    They are looked up on the class, because reading one from the object may load a model.
    """
    homes = [base for base in kind.__mro__ if getattr(base, "_is_protocol", False) and base is not typing.Protocol]
    members = sorted(
        {name for base in homes for name in (*vars(base), *vars(base).get("__annotations__", ())) if name[0] != "_"}
    )

    def accepts(value: object) -> bool:
        if isinstance(value, type):
            return False

        own = getattr(value, "__dict__", {})
        return all(name in own or hasattr(type(value), name) for name in members)

    return _Check(accepts, _a(kind.__name__))


# -- values ------------------------------------------------------------------------------------------------------------


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def _is_number(value: object) -> bool:
    return type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)))


def _is_listlike(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0

    return isinstance(value, (Sequence, pd.Series, pd.Index, ExtensionArray)) and not isinstance(value, _TEXT)


def _is_array(value: object, kinds: str) -> bool:
    """Whether the value is a list or an array, with values of one of these kinds of dtype if any are named."""
    if not isinstance(value, np.ndarray):
        if isinstance(value, (np.generic, pd.DataFrame)) or not (_is_listlike(value) or hasattr(value, "__array__")):
            return False
        if not kinds:
            return True

        try:
            value = np.asarray(value)
        except (TypeError, ValueError):
            return False

    return value.ndim > 0 and (not kinds or not value.size or value.dtype.kind in kinds)


_PLAIN: dict[Any, _Check] = {
    None: _Check(lambda value: value is None, "None"),
    types.NoneType: _Check(lambda value: value is None, "None"),
    bool: _Check(lambda value: isinstance(value, (bool, np.bool_)), "True or False"),
    int: _Check(_is_whole, "a whole number"),
    float: _Check(_is_number, "a number"),
    str: _Check(lambda value: isinstance(value, str), "text"),
    Path: _Check(lambda value: isinstance(value, os.PathLike), "a Path"),
}


# -- messages ----------------------------------------------------------------------------------------------------------


def _error(owner: str, name: str, value: Any, check: _Check) -> InputError:
    """The error for an argument that the check does not accept."""
    if check.element is not None and _is_listlike(value):  # name the element rather than the whole list
        for at, one in enumerate(value):
            if not check.element.accepts(one):
                return _error(owner, f"{name}[{at}]", one, check.element)

    return InputError(f"{owner}: {name} must be {check.expected}, got {shown(value)}{_remedy(value, check.expected)}")


def _remedy(value: object, expected: str) -> str:
    """How to make the expected value, as the end of a message; empty if there is no obvious way."""
    if type(value) is not bool and isinstance(value, (str, numbers.Number)) and "a list" in expected:
        return f"; put a single one in brackets: [{_cut(repr(value))}]"

    for name, made_by in _MADE_BY.items():
        if expected.startswith((f"a {name}", f"an {name}")):
            return f"; make it with {made_by}"

    return ""


def shown(value: object) -> str:
    """A short description of a value, for messages."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return f"a {type(value).__name__} of shape {value.shape}"
    if value is None or isinstance(value, (bool, numbers.Number, *_TEXT)):
        return _cut(repr(value))
    if isinstance(value, (list, tuple, dict, set)):
        return _cut(" ".join(repr(value).split()))
    if isinstance(value, type):
        return f"the class {value.__name__}"

    return _a(type(value).__name__)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
