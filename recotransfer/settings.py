"""Settings: the keyword arguments of a constructor, declared once with their types and bounds.

A constructor's annotations are the declaration. `fit`, `tune`, the command line and specs such as "EASE(reg=100)" all
check against it. Plain `int`, `float`, `bool` and `str` have no bounds; the types below add the usual ones.

>>> class Mine:
...     def __init__(self, *, dim: PositiveInt = 8, bias: bool = False, shift: float = 0.0) -> None:
...         self.dim, self.bias, self.shift = dim, bias, shift
>>> check_settings(Mine(bias=True, shift=-1.5))
>>> check_settings(Mine(dim=0))
Traceback (most recent call last):
...
recotransfer.errors.InputError: Mine: dim must be a whole number of at least 1, got 0
"""

from __future__ import annotations

import ast
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from recotransfer.errors import InputError


@dataclass(frozen=True)
class Bounds:
    """The range of a number, as in `Annotated[float, Bounds(above=0, most=1)]`; None leaves a side open."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def allow(self, number: float) -> bool:
        """Whether the number is in the range."""
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"

        sides = (("of at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {number:g}" for words, number in sides if number is not None)


PositiveInt: TypeAlias = Annotated[int, Bounds(least=1)]
NonNegativeInt: TypeAlias = Annotated[int, Bounds(least=0)]
Positive: TypeAlias = Annotated[float, Bounds(above=0)]
NonNegative: TypeAlias = Annotated[float, Bounds(least=0)]
Share: TypeAlias = Annotated[float, Bounds(least=0, most=1)]
Decay: TypeAlias = Annotated[float, Bounds(above=0, most=1)]


def settings_of(kind: type) -> dict[str, Any]:
    """Setting -> its type, as the constructor of `kind` declares it; `Any` if the annotation cannot be resolved.

    A constructor that passes `**settings` on also has the settings of its base class.
    """
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        init = vars(base).get("__init__")
        if not inspect.isfunction(init):
            continue

        init = inspect.unwrap(init)
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                hint = _resolved(parameter.name, parameter.annotation, init.__globals__)
                found.setdefault(parameter.name, hint)

        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break

    return found


def _resolved(name: str, annotation: object, namespace: dict[str, Any]) -> Any:
    """The annotation as a type. `from __future__ import annotations` leaves it as text, evaluated in `namespace`."""
    if annotation is inspect.Parameter.empty:
        return Any

    holder = types.SimpleNamespace(__annotations__={name: annotation})
    try:
        return typing.get_type_hints(holder, globalns=namespace, include_extras=True)[name]
    except (NameError, AttributeError):  # imported for type checkers only, or local to a function
        return Any


def check_settings(owner: object) -> None:
    """Check that every setting of `owner` has a value that its declaration allows.

    Args:
        owner: an object that keeps its constructor's arguments as attributes of the same names.

    Raises:
        InputError: a value is not allowed; the message names the class, the setting, the value and what is allowed.
    """
    for name, hint in settings_of(type(owner)).items():
        if hasattr(owner, name) and not fits(value := getattr(owner, name), hint):
            raise InputError(f"{type(owner).__name__}: {name} must be {in_words(hint)}, got {value!r}")


def check_names(kind: type, names: Iterable[str], source: str) -> None:
    """Raise `InputError` if `kind` lacks one of these settings; the message begins with `source`."""
    known = settings_of(kind)
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(known) or "none"
        raise InputError(f"{source}: {kind.__name__} has no setting {unknown[0]!r}; it has {listed}")


def fits(value: object, hint: object) -> bool:
    """Whether `value` is of the type `hint` and within its bounds; numbers must be finite."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [extra for extra in inner[1:] if isinstance(extra, Bounds)]
        return fits(value, inner[0]) and all(bound.allow(typing.cast(float, value)) for bound in bounds)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is None:
        return value is None

    kind = origin or hint
    if not inspect.isclass(kind) or kind is Any or _is_plain_protocol(kind):
        return True  # a type variable or a protocol, which `isinstance` cannot check
    if kind is type:
        return isinstance(value, type)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fit_pair(pair, inner) for pair in value.items())
    if kind is not str and issubclass(kind, Iterable):
        return _fit_list(value, kind, inner)

    return isinstance(value, kind)


def _is_plain_protocol(kind: type) -> bool:
    """Whether the class is a protocol that `isinstance` does not support."""
    return getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)


def _fit_pair(pair: tuple[object, object], hints: tuple[Any, ...]) -> bool:
    return len(hints) != 2 or all(fits(one, hint) for one, hint in zip(pair, hints, strict=True))


def _fit_list(value: object, kind: type, hints: tuple[Any, ...]) -> bool:
    """`fits` for lists and tuples, which stand for each other: JSON files and command lines have lists only."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple, kind)):
        return False
    if not hints:
        return True

    entries = list(typing.cast(Iterable[object], value))
    if kind is tuple and hints[-1] is not Ellipsis:
        return len(entries) == len(hints) and all(fits(one, hint) for one, hint in zip(entries, hints, strict=True))

    return all(fits(one, hints[0]) for one in entries)


_WORDS: dict[Any, tuple[str, str]] = {  # type -> its description in terms of Python, and of JSON
    int: ("a whole number", "a whole number"),
    float: ("a number", "a number"),
    bool: ("True or False", "true or false"),
    str: ("text", "text"),
    type(None): ("None", "null"),
    None: ("None", "null"),
}


def in_words(hint: object, *, json: bool = False) -> str:
    """The values that `fits` accepts, in words, for messages.

    Args:
        hint: the type.
        json: spell constants as in JSON, for values that are typed on a command line.

    >>> in_words(PositiveInt | None)
    'a whole number of at least 1 or None'
    >>> in_words(Literal["sparse", "dense"])
    '"sparse" or "dense"'
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([in_words(inner[0]), *(str(extra) for extra in inner[1:] if isinstance(extra, Bounds))])
    if origin in (Union, types.UnionType):
        return _listed([in_words(one, json=json) for one in inner])
    if origin is Literal:
        return _listed([f'"{one}"' if isinstance(one, str) else repr(one) for one in inner])
    if hint in _WORDS:
        return _WORDS[hint][json]

    kind = origin or hint
    if not inspect.isclass(kind):
        return f"a {kind}"
    if issubclass(kind, Mapping):
        return f"a mapping to {in_words(inner[1], json=json)}" if len(inner) == 2 else "a mapping"
    if issubclass(kind, Iterable):
        return f"a list, each entry {in_words(inner[0], json=json)}" if inner else "a list"

    return f"a{'n' * (kind.__name__[0] in 'AEIOU')} {kind.__name__}"


def _listed(words: Sequence[str]) -> str:
    """The alternatives as one phrase: "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# -- settings written as text ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A class's name and settings, as in "EASE(reg=100)"; `settings` is None if there are no brackets."""

    name: str
    settings: dict[str, Any] | None


def parse_named(text: str) -> Named:
    """The name and settings in a text such as "EASE", "EASE(reg=100)" or "my_shop.models:Mine(form='round')".

    Raises:
        InputError: the brackets contain anything but setting=value, with literals as values.
    """
    name, bracket, inside = text.strip().partition("(")
    if not bracket:
        return Named(name.strip(), None)

    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or isinstance(call.func, ast.Call):
            raise ValueError

        given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
        if len(given) < len(call.keywords):  # a setting twice, or **settings
            raise ValueError
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise InputError(
            f"{text.strip()!r}: write settings as in EASE(reg=100, history_decay=0.6), each once, text in quotes"
        ) from None

    return Named(name.strip(), given)


def split_label(text: str) -> tuple[str, str]:
    """The label and the spec in a text such as "mine=EASE(reg=100)": ("mine", "EASE(reg=100)").

    The label ends at the first "=" outside brackets; it is empty if there is none.
    """
    marks = [at for at, letter in enumerate(text) if letter == "="]
    mark = next((at for at in marks if text.count("(", 0, at) == text.count(")", 0, at)), -1)

    return " ".join(text[: max(mark, 0)].split()), text[mark + 1 :].strip()


# -- settings in saved folders -----------------------------------------------------------------------------------------

_FORMER_NAMES = {"rng": "seed"}  # former name, as in some saved folders of format 1 -> present name


def saved_settings(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings read from a file, under the names that the constructor of `kind` takes now; lists become tuples."""
    known = settings_of(kind)
    out = {}

    for name, value in values.items():
        present = _FORMER_NAMES.get(name, name)
        if name in known or present not in known:
            present = name

        out[present] = tuple(value) if isinstance(value, list) else value

    return out
