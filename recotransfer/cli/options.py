"""Options shared by commands, and their values."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from recotransfer.errors import InputError
from recotransfer.settings import check_names, fits, in_words, settings_of


def pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """{name: value} of words such as "name=value"."""
    out = {}
    for value in values:
        name, found, right = value.partition("=")
        if not found or not name or not right:
            raise InputError(f"--{flag} {value!r}: write NAME=VALUE")

        out[name] = right

    return out


def numbers(values: Sequence[str], flag: str) -> dict[str, float]:
    """{name: number} of words such as "name=1.5"."""
    out = {}
    for name, value in pairs(values, flag).items():
        try:
            out[name] = float(value)
        except ValueError:
            raise InputError(f"--{flag} {name}={value}: {value!r} is not a number") from None

    return out


def settings(kind: type, values: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments of the class `kind` from words such as "reg=200"; names and values are checked.

    >>> from recotransfer.recommenders import EASE
    >>> settings(EASE, ["reg=7", "neighbours=null"])
    {'reg': 7, 'neighbours': None}
    """
    declared = settings_of(kind)
    out: dict[str, Any] = {}

    for name, text in pairs(values, "set").items():
        check_names(kind, [name], f"--set {name}={text}")
        try:
            out[name] = json.loads(text)
        except json.JSONDecodeError:
            out[name] = text

        if not fits(out[name], declared[name]):
            raise InputError(f"--set {name}={text}: {name} must be {in_words(declared[name], json=True)}")

    return out


def config_option(command: Any) -> Any:
    """Adds `--config FILE`: a TOML file with flags, in a table of the command's name or above all tables."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_take_config,
        help="TOML file that can hold any of these flags, above all tables or in one of this command's name.",
    )(command)


def _take_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = _read_config(path, context)


def _read_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Parameter name -> value for the command of `context`; the command line itself comes before these."""
    command, name = context.command, str(context.info_name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a TOML file to --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise InputError(f"{path} is not TOML: {cause}") from None

    group = context.parent.command if context.parent is not None else None
    others = dict(group.commands) if isinstance(group, click.Group) else {name: command}
    own = table.get(name, {})
    if not isinstance(own, Mapping):
        raise InputError(f"{path}: {name} must be a table, [{name}], and is {own!r}")

    top = {key: value for key, value in table.items() if key not in others}
    everywhere = {flag for other in others.values() for flag in _flags(other)}
    flags = _flags(command)
    if lost := [key for key in top if key not in everywhere] + [key for key in own if key not in flags]:
        raise InputError(f"{path}: {name} has no flag {lost[0]!r}; it has {', '.join(flags)}")

    merged = {**{key: value for key, value in top.items() if key in flags}, **own}

    return {str(flags[key].name): _plain(path, key, value, flags[key]) for key, value in merged.items()}


def _flags(command: click.Command) -> dict[str, click.Parameter]:
    found = {option.lstrip("-"): p for p in command.params for option in p.opts}
    return {name: p for name, p in found.items() if name != "config"}


def _plain(path: Path, key: str, value: Any, flag: click.Parameter) -> Any:
    """The value as the command line would have spelt it, which click then checks alike."""
    if isinstance(flag, click.Option) and flag.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} must be true or false, and is {value!r}")

        return value

    if flag.multiple or flag.nargs != 1:
        if isinstance(value, Mapping):
            return [f"{name}={_text(right)}" for name, right in value.items()]

        return [_text(one) for one in (value if isinstance(value, list) else [value])]

    if isinstance(value, (Mapping, list)):
        raise InputError(f"{path}: {key} takes one value, and is {value!r}")

    return _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


PATH = click.Path(path_type=Path)


def say(*words: Any) -> None:
    """Print words to stderr, where everything but results goes."""
    click.echo(" ".join(str(w) for w in words), err=True)


def count_of(n: int, what: str) -> str:
    """The number and the noun, in the plural where it is not 1."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which items may be recommended."""
    for option in (
        click.option(
            "--where",
            help="Only items for which this holds, e.g. 'price < 20 and category == \"Mugs\"'; also "
            'category in ("Mugs", "Cups"), contains(title, "tea"), has(tags, "vegan"), '
            "missing(price). Names with spaces go in backticks: `Unit Price`.",
        ),
        click.option("--deny", type=PATH, help="File with a column of item ids never to recommend."),
        click.option("--allow", type=PATH, help="File with a column of item ids; only these are recommended."),
    ):
        command = option(command)

    return command


def content_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a catalogue: its columns, their kinds and encoders."""
    for option in (
        click.option("--cache", type=PATH, help="Folder that keeps encoded content between runs."),
        click.option("--item-column", "item_columns", multiple=True, metavar="ROLE=COLUMN",
                     help="Role item in the catalogue."),
        click.option("--kind", "kinds", multiple=True, metavar="COLUMN=KIND",
                     help="Kind of an item column: text, image, ..."),
        click.option("--only", multiple=True, metavar="COLUMN",
                     help="Item columns to encode; all others are for filters only."),
        click.option("--weight", "weights", multiple=True, metavar="MODALITY=NUMBER",
                     help="Weight of text, image, attributes."),
        click.option("--tuner", "tuners", multiple=True, metavar="MODALITY=NAME(SETTINGS)",
                     help="What trains the encoder of a modality first, e.g. 'text=FineTune(folder=\"tuned\")'."),
        click.option("--transfer", "transfers", multiple=True, metavar="NAME(SETTINGS)",
                     help="Map on the items' vectors, in the order given, e.g. 'Whitening(dim=64)'."),
        click.option("--encoder", "encoders", multiple=True, metavar="[COLUMN=]NAME(SETTINGS)",
                     help="Encoder by name, e.g. 'title=HashingText(dim=256)'; your own as package.module:Class."),
        click.option("--image-encoder",
                     help="transformers vision model name or folder; pictures are left out without one."),
        click.option("--text-encoder",
                     help="sentence-transformers name or folder; default all-MiniLM-L6-v2, installed."),
    ):  # fmt: skip
        command = option(command)

    return command


def event_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a log: its columns, times and weights."""
    for option in (
        click.option("--time-format", help='strptime format, or "s", "ms", "order", where times are not understood.'),
        click.option("--rating-as-weight", is_flag=True, help="Take ratings as weights."),
        click.option("--rating-threshold", type=float, help="Keep ratings of at least this, as events of weight 1."),
        click.option("--event-weight", "event_weights", multiple=True, metavar="KIND=NUMBER",
                     help="Weight of an event kind; 0 leaves it out."),
        click.option("--event-column", "event_columns", multiple=True, metavar="ROLE=COLUMN",
                     help="Column of a role: user, item, event, time, rating, weight."),
    ):  # fmt: skip
        command = option(command)

    return command


def kinds_of_columns(values: Sequence[str]) -> Any:
    """Column -> kind, from the values of --kind."""
    return pairs(values, "kind")
