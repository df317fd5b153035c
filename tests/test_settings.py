"""Settings are declared once, in a constructor's annotations, and checked against them everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from recotransfer import registry
from recotransfer.cli.options import settings as from_the_command_line
from recotransfer.errors import InputError
from recotransfer.settings import (
    Bounds,
    Decay,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Share,
    check_settings,
    fits,
    in_words,
    parse_named,
    settings_of,
    split_label,
)


class Plain:
    """Settings without bounds."""

    def __init__(
        self, *, bias: bool = False, shift: float = 0.0, steps: int = 0, name: str = "a", widths: Sequence[int] = ()
    ) -> None:
        self.bias = bias
        self.shift = shift
        self.steps = steps
        self.name = name
        self.widths = widths


OLD_STYLE = """
from recotransfer.settings import PositiveInt
class Mine:
    def __init__(self, *, dim: PositiveInt = 8, bias: bool = False):
        self.dim = dim
        self.bias = bias
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_annotations_are_read_with_and_without_postponed_evaluation(future):
    space: dict[str, Any] = {"__name__": "made_up"}
    exec(compile(future + OLD_STYLE, "made_up", "exec", dont_inherit=True), space)
    check_settings(space["Mine"](bias=True))
    with pytest.raises(InputError, match="Mine: dim must be a whole number of at least 1, got 0"):
        check_settings(space["Mine"](dim=0))
    with pytest.raises(InputError, match="Mine: bias must be True or False, got 1"):
        check_settings(space["Mine"](bias=1))


@pytest.mark.parametrize(
    "given", [{"bias": True}, {"shift": -1.5}, {"shift": 3}, {"steps": 0}, {"steps": -2}, {"widths": [3, -4]}]
)
def test_plain_annotations_have_no_bounds(given):
    check_settings(Plain(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias": 1}, "bias must be True or False, got 1"),
        ({"shift": True}, "shift must be a number, got True"),
        ({"shift": math.nan}, "shift must be a number, got nan"),
        ({"shift": "1"}, "shift must be a number, got '1'"),
        ({"steps": 1.0}, "steps must be a whole number, got 1.0"),
        ({"steps": None}, "steps must be a whole number, got None"),
        ({"name": 3}, "name must be text, got 3"),
        ({"widths": 3}, "widths must be a list, each entry a whole number, got 3"),
        ({"widths": "34"}, "widths must be a list, each entry a whole number, got '34'"),
        ({"widths": (3, 4.5)}, r"widths must be a list, each entry a whole number, got \(3, 4.5\)"),
    ],
)
def test_a_wrong_type_is_named_with_what_is_allowed(given, message):
    with pytest.raises(InputError, match=f"^Plain: {message}"):
        check_settings(Plain(**given))


@pytest.mark.parametrize(
    ("hint", "good", "bad", "words"),
    [
        (PositiveInt, [1, 9], [0, -1, 1.5, True, None], "a whole number of at least 1"),
        (NonNegativeInt, [0], [-1], "a whole number of at least 0"),
        (NonNegative, [0, 0.5], [-1e-9, math.inf], "a number of at least 0"),
        (Share, [0, 0.5, 1], [-0.1, 1.1], "a number from 0 to 1"),
        (Decay, [0.1, 1], [0, 1.1], "a number above 0 and at most 1"),
        (Annotated[float, Bounds(least=0, below=1)], [0, 0.9], [1], "a number of at least 0 and below 1"),
        (PositiveInt | None, [None, 3], [0], "a whole number of at least 1 or None"),
        (PositiveInt | Literal["all"], ["all", 3], ["none", 0], 'a whole number of at least 1 or "all"'),
        (Literal[1, "two"], [1, "two"], [True, 2], '1 or "two"'),
        (str | Path, ["a", Path("a")], [3], "text or a Path"),
        (Sequence[Share], [(0, 1), [0.5]], [(2,), 0.5], "a list, each entry a number from 0 to 1"),
        (tuple[int, str], [(1, "a"), [1, "a"]], [(1,), ("a", 1)], "a list, each entry a whole number"),
        (Mapping[str, float], [{"a": 1}], [{"a": "b"}, {1: 1}, [1]], "a mapping to a number"),
        (Callable[[int], int], [abs], [3], "a Callable"),
        (np.random.Generator, [np.random.default_rng(0)], [0], "a Generator"),
        (Any, [None, 3, "a"], [], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_fits_and_what_the_message_calls_it(hint, good, bad, words):
    assert all(fits(value, hint) for value in good)
    assert not any(fits(value, hint) for value in bad)
    assert words is None or in_words(hint) == words


class Handing(Plain):
    """Hands what it does not know to the class above."""

    def __init__(self, *, more: PositiveInt = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.more = more


def test_settings_that_are_handed_on_are_known():
    assert list(settings_of(Handing)) == ["more", "bias", "shift", "steps", "name", "widths"]
    with pytest.raises(InputError, match="Handing: bias must be True or False"):
        check_settings(Handing(bias=3))


def every_class():
    kinds = (registry.recommenders, registry.encoders, registry.transfers, registry.tuners, registry.indexes)
    return [known.find(name) for known in kinds for name in known.names]


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__name__)
def test_every_setting_of_ours_is_declared_and_its_default_fits(kind):
    import inspect

    declared = settings_of(kind)
    for name, parameter in inspect.signature(kind).parameters.items():
        assert declared[name] is not Any, f"{kind.__name__}.{name} is not declared, or its annotation cannot be read"
        if parameter.default is not inspect.Parameter.empty:
            assert fits(parameter.default, declared[name]), f"{kind.__name__}.{name} = {parameter.default!r}"


def test_the_command_line_reads_the_same_declaration():
    assert from_the_command_line(Plain, ["bias=true", "shift=-1", "steps=0", "widths=[1, 2]"]) == {
        "bias": True, "shift": -1, "steps": 0, "widths": [1, 2],
    }  # fmt: skip
    with pytest.raises(InputError, match="--set bias=1: bias must be true or false"):
        from_the_command_line(Plain, ["bias=1"])
    with pytest.raises(InputError, match="Plain has no setting 'biass'; it has bias, shift"):
        from_the_command_line(Plain, ["biass=1"])


@pytest.mark.parametrize(
    ("text", "label", "name", "given"),
    [
        ("EASE", "", "EASE", None),
        (" EASE() ", "", "EASE", {}),
        ("mine=a.b:C(x=-1, y='=(', z=None)", "mine", "a.b:C", {"x": -1, "y": "=(", "z": None}),
        ("<b>mine</b>\n (v=2) =EASE(reg=5)", "<b>mine</b> (v=2)", "EASE", {"reg": 5}),
    ],
)
def test_names_with_settings_are_parsed(text, label, name, given):
    found, spec = split_label(text)
    named = parse_named(spec)
    assert (found, named.name, named.settings) == (label, name, given)


@pytest.mark.parametrize("text", ["EASE(3)", "EASE(a=1", "EASE(a=1)(b=2)", "EASE(a=b)", "EASE(**{})", "EASE(a=1) + 2"])
def test_what_is_no_list_of_settings_is_refused(text):
    with pytest.raises(InputError, match="write settings as in EASE"):
        parse_named(text)
