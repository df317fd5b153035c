"""Options that commands share, and the parsing of their values."""

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
    """{name: value} from texts such as "name=value"."""
    out = {}
    for value in values:
        name, found, right = value.partition("=")
        if not found or not name or not right:
            raise InputError(f"--{flag} {value!r} is incomplete; write NAME=VALUE")

        out[name] = right

    return out


def numbers(values: Sequence[str], flag: str) -> dict[str, float]:
    """{name: number} from texts such as "name=1.5"."""
    out = {}
    for name, value in pairs(values, flag).items():
        try:
            out[name] = float(value)
        except ValueError:
            raise InputError(f"--{flag} {name}={value}: {value!r} is not a number; write NAME=NUMBER") from None

    return out


def settings(kind: type, values: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments of the class `kind` from texts such as "reg=200", with names and values checked.

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
    """Add `--config FILE`: a TOML file with flags, at the top level or in a table named after the command."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_take_config,
        help="TOML file with any of these flags, at its top level or in a table named after this command.",
    )(command)


def _take_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = _read_config(path, context)


def _read_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Parameter name -> value for the command of `context`. Flags on the command line override these."""
    command, name = context.command, str(context.info_name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a TOML file to --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise InputError(f"{path} is not TOML: {cause}") from None

    group = context.parent.command if context.parent is not None else None
    commands = dict(group.commands) if isinstance(group, click.Group) else {name: command}
    section = table.get(name, {})
    if not isinstance(section, Mapping):
        raise InputError(f"{path}: {name} must be a table, [{name}], got {section!r}")

    # Keys at the top level may be meant for other commands; those of the command's own table may not.
    top = {key: value for key, value in table.items() if key not in commands}
    flags_of_all = {flag for each in commands.values() for flag in _flags(each)}
    flags = _flags(command)
    if unknown := [key for key in top if key not in flags_of_all] + [key for key in section if key not in flags]:
        raise InputError(f"{path}: {name} has no flag {unknown[0]!r}; it has {', '.join(flags)}")

    merged = {**{key: value for key, value in top.items() if key in flags}, **section}

    return {str(flags[key].name): _as_words(path, key, value, flags[key]) for key, value in merged.items()}


def _flags(command: click.Command) -> dict[str, click.Parameter]:
    """Flag without its dashes -> parameter, for every flag but --config."""
    flags = {option.lstrip("-"): parameter for parameter in command.params for option in parameter.opts}
    return {name: parameter for name, parameter in flags.items() if name != "config"}


def _as_words(path: Path, key: str, value: object, flag: click.Parameter) -> Any:
    """The TOML value as it would be written on the command line, so that click checks both in the same way."""
    if isinstance(flag, click.Option) and flag.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} must be true or false, got {value!r}")

        return value

    if flag.multiple or flag.nargs != 1:
        if isinstance(value, Mapping):
            return [f"{name}={_text(right)}" for name, right in value.items()]

        return [_text(one) for one in (value if isinstance(value, list) else [value])]

    if isinstance(value, (Mapping, list)):
        raise InputError(f"{path}: {key} takes one value, got {value!r}")

    return _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def threads_option(command: Any) -> Any:
    """Add `--threads N`, which limits the threads of the package and of its libraries while the command runs."""
    return click.option(
        "--threads",
        type=click.IntRange(1),
        expose_value=False,
        callback=_limit_threads,
        help="Threads to use; by default one per core.",
    )(command)


def _limit_threads(context: click.Context, _: click.Parameter, count: int | None) -> None:
    from recotransfer.numerics.threads import limited_threads

    if count is not None:
        context.with_resource(limited_threads(count))


PATH = click.Path(path_type=Path)


def say(*words: object) -> None:
    """Print to stderr; stdout is for results only."""
    click.echo(" ".join(str(w) for w in words), err=True)


def count_of(n: int, what: str) -> str:
    """The number and the noun, in the plural unless the number is 1."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that restrict which items may be recommended."""
    for option in (
        click.option(
            "--where",
            help="Recommend only items that satisfy this, e.g. 'price < 20 and category == \"Mugs\"'; also "
            'category in ("Mugs", "Cups"), contains(title, "tea"), has(tags, "vegan"), '
            "missing(price). Names with spaces go in backticks: `Unit Price`.",
        ),
        click.option("--deny", type=PATH, help="File with a column of ids of items never to recommend."),
        click.option("--allow", type=PATH, help="File with a column of ids of the only items to recommend."),
    ):
        command = option(command)

    return command


def content_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a catalogue: its columns, their kinds, encoders and transfers."""
    for option in (
        click.option("--cache", type=PATH, help="Folder that keeps encoded content between runs."),
        click.option("--item-column", "item_columns", multiple=True, metavar="ROLE=COLUMN",
                     help="Column of a role in the catalogue, e.g. item=sku."),
        click.option("--kind", "kinds", multiple=True, metavar="COLUMN=KIND",
                     help="Kind of an item column: text, image, category or number."),
        click.option("--only", multiple=True, metavar="COLUMN",
                     help="Item column to encode; the others are only for filters."),
        click.option("--weight", "weights", multiple=True, metavar="MODALITY=NUMBER",
                     help="Weight of a modality: text, image or attributes."),
        click.option("--tuner", "tuners", multiple=True, metavar="MODALITY=NAME(SETTINGS)",
                     help="Tuner of a modality's encoder, e.g. 'text=FineTune(folder=\"tuned\")'."),
        click.option("--transfer", "transfers", multiple=True, metavar="NAME(SETTINGS)",
                     help="Map of the items' vectors, e.g. 'Whitening(dim=64)'; several apply in order."),
        click.option("--encoder", "encoders", multiple=True, metavar="[COLUMN=]NAME(SETTINGS)",
                     help="Encoder by name, e.g. 'title=HashingText(dim=256)'; your own as package.module:Class."),
        click.option("--image-encoder",
                     help="transformers vision model, name or folder; without it pictures are ignored."),
        click.option("--text-encoder",
                     help="sentence-transformers model, name or folder; by default the installed all-MiniLM-L6-v2. "
                     "'multilingual' and 'all-mpnet-base-v2' need the extras multilingual and mpnet."),
    ):  # fmt: skip
        command = option(command)

    return command


def event_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a log: its columns, times and weights."""
    for option in (
        click.option("--time-format", help='strptime format, "s", "ms" or "order", for times that are not recognised.'),
        click.option("--rating-as-weight", is_flag=True, help="Use ratings as event weights."),
        click.option("--rating-threshold", type=float, help="Keep only ratings of at least this, with weight 1."),
        click.option("--event-weight", "event_weights", multiple=True, metavar="KIND=NUMBER",
                     help="Weight of an event kind; 0 drops its events."),
        click.option("--event-column", "event_columns", multiple=True, metavar="ROLE=COLUMN",
                     help="Column of a role in the log: user, item, event, time, rating or weight."),
    ):  # fmt: skip
        command = option(command)

    return command


def kinds_of_columns(values: Sequence[str]) -> Any:
    """Column -> kind, from the values of --kind."""
    return pairs(values, "kind")
