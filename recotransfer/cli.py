"""The command line: fit, recommend, similar, inspect, demo. Thin: each command reads, calls one thing, reports."""

from __future__ import annotations

import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from recotransfer import __version__
from recotransfer.errors import InputError, RecoTransferError

if TYPE_CHECKING:
    from recotransfer.data import IdMap, Interactions, Items
    from recotransfer.encoders import Encoder
    from recotransfer.filters import Filter
    from recotransfer.task import TransferTask

_PATH = click.Path(path_type=Path)


class _Command(click.Command):
    """A command whose flags can also stand in a TOML file, under a table with the command's name or at the top."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for place, word in enumerate(args):
            if word == "--config" and place + 1 < len(args):
                ctx.default_map = _config(Path(args[place + 1]), self)
            elif word.startswith("--config="):
                ctx.default_map = _config(Path(word.partition("=")[2]), self)
        return super().parse_args(ctx, args)


def _config(path: Path, command: click.Command) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise click.UsageError(f"{path} does not exist; give a TOML file to --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise click.UsageError(f"{path} is not TOML: {cause}") from None
    values = {**{k: v for k, v in table.items() if not isinstance(v, dict)}, **table.get(command.name or "", {})}
    names = {option.lstrip("-"): p.name for p in command.params for option in p.opts}
    if lost := sorted(set(values) - set(names)):
        raise click.UsageError(
            f"{path}: {command.name} has no flag {lost[0]!r}; see recotransfer {command.name} --help"
        )
    return {str(names[key]): [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
            for key, value in values.items()}  # fmt: skip


def _pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    out = {}
    for value in values:
        name, found, right = value.partition("=")
        if not found or not name or not right:
            raise InputError(f"--{flag} {value!r}: write NAME=VALUE")
        out[name] = right
    return out


def _numbers(values: Sequence[str], flag: str) -> dict[str, float]:
    out = {}
    for name, value in _pairs(values, flag).items():
        try:
            out[name] = float(value)
        except ValueError:
            raise InputError(f"--{flag} {name}={value}: {value!r} is not a number") from None
    return out


def _say(*words: Any) -> None:
    click.echo(" ".join(str(w) for w in words), err=True)


_config_option = click.option("--config", type=_PATH, help="TOML file that can hold any of these flags.")


def _filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--where", help="Only items for which this holds, e.g. 'price < 20 and category == \"Mugs\"'."),
        click.option("--deny", type=_PATH, help="File with a column of item ids never to recommend."),
        click.option("--allow", type=_PATH, help="File with a column of item ids; only these are recommended."),
    ):
        command = option(command)
    return command


def _ids_of(path: Path, role: Literal["user", "item"], known: IdMap) -> Any:
    """The ids in a file's id column, or its only one, as the model holds them."""
    from recotransfer.readers import read_ids

    return read_ids(path, role=role, known=known)


def _filter(allow: Path | None, deny: Path | None, where: str | None, known: IdMap) -> Filter | None:
    from recotransfer.filters import Filter

    if allow is None and deny is None and where is None:
        return None
    return Filter(
        None if allow is None else _ids_of(allow, "item", known),
        () if deny is None else _ids_of(deny, "item", known),
        where,
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    r"""Recommendations from a catalogue and a log of events, with what pretrained encoders know of the items.

    \b
    recotransfer demo                                       # the whole of it on a little shop
    recotransfer fit --items items.csv --events events.csv --out model
    recotransfer recommend model --out recs                 # Parquet for every user
    """


@cli.command(cls=_Command)
@click.option("--items", required=True, help="Catalogue: CSV, Parquet or database URL.")
@click.option("--events", required=True, help="Log of events: CSV, Parquet or database URL.")
@click.option("--out", required=True, type=_PATH, help="Folder for the model.")
@click.option("--recommender", default="HybridItems", show_default=True, help="Class of the recommender.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the recommender.")
@click.option("--text-encoder", help="sentence-transformers name or folder; default all-MiniLM-L6-v2, installed.")
@click.option("--image-encoder", help="transformers vision model name or folder; pictures are left out without one.")
@click.option(
    "--weight", "weights", multiple=True, metavar="MODALITY=NUMBER", help="Weight of text, image, attributes."
)
@click.option("--no-content", is_flag=True, help="Behaviour only: the control arm.")
@click.option(
    "--only", multiple=True, metavar="COLUMN", help="Item columns to encode; all others are for filters only."
)
@click.option("--kind", "kinds", multiple=True, metavar="COLUMN=KIND", help="Kind of an item column: text, image, ...")
@click.option("--item-column", "item_columns", multiple=True, metavar="ROLE=COLUMN", help="Role item in the catalogue.")
@click.option("--event-column", "event_columns", multiple=True, metavar="ROLE=COLUMN",
              help="Roles user, item, event, time, rating, weight in the log.")  # fmt: skip
@click.option("--event-weight", "event_weights", multiple=True, metavar="KIND=NUMBER", help="Weight of an event kind.")
@click.option("--rating-threshold", type=float, help="Keep ratings of at least this, as events of weight 1.")
@click.option("--rating-as-weight", is_flag=True, help="Take ratings as weights.")
@click.option("--time-format", help='strptime format, or "s", "ms", "order", where times are not understood.')
@click.option("--trials", type=click.IntRange(1), help="Choose settings on held-out events, fitting this many models.")
@click.option("--valid", help="Events to choose settings on; by default each user's last one is held out.")
@click.option("--valid-allow", type=_PATH, help="File of item ids: rank only these while choosing.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="List length while choosing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option("--index-recall", type=click.FloatRange(0, 1, min_open=True),
              help="Models of factors: choose the quickest index with this recall for single requests.")  # fmt: skip
@click.option("--cache", type=_PATH, help="Folder that keeps encoded content between runs.")
@_config_option
def fit(**o: Any) -> None:
    r"""Read a catalogue and a log, encode the items, fit a recommender, save it.

    \b
    Example:
      recotransfer fit --items sample_data/items.csv --events sample_data/events.csv --out model
      recotransfer fit --items "sqlite:///shop.db#items" --events "sqlite:///shop.db#events" --out model --trials 20
    """
    from recotransfer.task import TransferTask

    items, events = _read(o)
    task = TransferTask(
        _recommender(o["recommender"], o["settings"]),
        encoders=_encoders(o, items),
        weights=_numbers(o["weights"], "weight") or None,
        cache=o["cache"],
    )
    if o["trials"]:
        task = _tuned(task, items, events, o)
    start = time.perf_counter()
    task.fit(items, events)
    seconds = time.perf_counter() - start
    for report in task.reports_:
        _say(report)
    if o["index_recall"]:
        _say(_choose_index(task, o["index_recall"]))
    task.save(o["out"])
    known = task.recommender
    _say(f"fitted {type(known).__name__} on {len(events)} events of {len(events.users)} users and "
         f"{len(known.catalogue_)} items in {seconds:.1f} s, peak memory {_peak_mib():.0f} MiB")  # fmt: skip
    click.echo(o["out"])


def _choose_index(task: TransferTask, target_recall: float) -> str:
    from recotransfer.recommenders.base import FactorModel

    if not isinstance(task.recommender, FactorModel):
        raise InputError(f"{type(task.recommender).__name__} has no index to choose; leave --index-recall out")
    return task.recommender.choose_index(target_recall).index_report_


def _read(o: Mapping[str, Any]) -> tuple[Items, Interactions]:
    from recotransfer.readers import EventWeights, read_interactions, read_items

    items = read_items(o["items"], columns=_pairs(o["item_columns"], "item-column"), kinds=_kinds(o["kinds"]))
    _say(items.report)
    weighing = EventWeights(
        weights=_numbers(o["event_weights"], "event-weight"),
        rating_threshold=o["rating_threshold"],
        rating_as_weight=o["rating_as_weight"],
    )
    events = read_interactions(
        o["events"],
        columns=_pairs(o["event_columns"], "event-column"),
        events=weighing,
        items=items.data.ids,
        time_format=o["time_format"],
    )
    _say(events.report)
    return items.data, events.data


def _kinds(values: Sequence[str]) -> Any:
    return _pairs(values, "kind")


def _recommender(name: str, settings: Sequence[str]) -> Any:
    from recotransfer.recommenders import by_name

    kind = by_name(name)
    given: dict[str, Any] = {}
    for key, text in _pairs(settings, "set").items():
        try:
            given[key] = json.loads(text)
        except json.JSONDecodeError:
            given[key] = text
    try:
        return kind(**given)
    except TypeError as cause:
        raise InputError(f"{name}: {cause}; its settings are {', '.join(kind().params())}") from None


def _encoders(o: Mapping[str, Any], items: Items) -> list[Encoder] | None:
    from recotransfer.encoders import default_encoders

    if o["no_content"]:
        return []
    return default_encoders(items, text_model=o["text_encoder"], image_model=o["image_encoder"], only=o["only"] or None)


def _tuned(task: TransferTask, items: Items, events: Interactions, o: Mapping[str, Any]) -> TransferTask:
    from recotransfer.artifacts import atomic_file
    from recotransfer.readers import read_interactions
    from recotransfer.task import TransferTask
    from recotransfer.tuning import tune

    valid = None
    if o["valid"]:
        read = read_interactions(
            o["valid"], columns=_pairs(o["event_columns"], "event-column"), items=items.ids, users=events.users
        )
        _say(read.report)
        valid = read.data
    allow = None if o["valid_allow"] is None else _ids_of(o["valid_allow"], "item", items.ids)
    tuned = tune(task, items, events, valid=valid, allow=allow, trials=o["trials"], k=o["k"], rng=o["seed"])
    first, best = tuned.trials["ndcg"].iloc[0], tuned.trials["ndcg"].max()
    chosen = json.dumps({**tuned.params, **({"weights": tuned.weights} if tuned.weights else {})})
    _say(f"{len(tuned.trials)} trials: NDCG@{o['k']} on held-out events {first:.4f} as given, {best:.4f} with {chosen}")
    path = o["out"].with_name(o["out"].name + ".trials.csv")
    with atomic_file(path) as file:
        tuned.trials.to_csv(file, index_label="trial")
    _say(f"every trial: {path}")
    return TransferTask(
        type(task.recommender)(**tuned.params), encoders=task.encoders, weights=tuned.weights, cache=task.cache
    )


def _peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


@cli.command(cls=_Command)
@click.argument("model", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder for the Parquet shards and their manifest.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items per user.")
@click.option("--users", type=_PATH, help="File with a column of user ids; default everyone.")
@click.option("--histories", help="Events of users, known or new, to recommend for; replaces what fit saw.")
@click.option("--event-column", "event_columns", multiple=True, metavar="ROLE=COLUMN", help="Roles in --histories.")
@_filter_options
@click.option("--include-seen", is_flag=True, help="Items of the user's own history may be recommended.")
@click.option("--reasons", is_flag=True, help="Also write which own items and which parts of the model counted.")
@click.option("--shard", type=click.IntRange(1), default=20_000, show_default=True, help="Users per file.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted job.")
@_config_option
def recommend(model: Path, out: Path, **o: Any) -> None:
    r"""Write the best items of every user, or of those asked for, to Parquet.

    \b
    Example:
      recotransfer recommend model --out recs --k 20 --where 'in_stock and price < 50'
      recotransfer recommend model --out recs-new --histories new_users.csv --reasons
    """
    from recotransfer.artifacts import sha256
    from recotransfer.batch import BatchJob
    from recotransfer.readers import read_interactions
    from recotransfer.task import TransferTask

    task = TransferTask.load(model)
    catalogue = task.recommender.catalogue_
    histories = None
    if o["histories"]:
        read = read_interactions(o["histories"], columns=_pairs(o["event_columns"], "event-column"), items=catalogue)
        _say(read.report)
        histories = read.data
    known = task.recommender.events_.users if histories is None else histories.users
    job = BatchJob(
        out,
        o["k"],
        not o["include_seen"],
        _filter(o["allow"], o["deny"], o["where"], catalogue),
        o["reasons"],
        o["shard"],
    )
    start = time.perf_counter()
    manifest = job.run(
        task,
        model=sha256(model / "manifest.json"),
        users=None if o["users"] is None else _ids_of(o["users"], "user", known),
        histories=histories,
        resume=o["resume"],
    )
    seconds = time.perf_counter() - start
    _say(f"{manifest['users']} users in {seconds:.1f} s, {len(manifest['shards'])} shards, "
         f"peak memory {_peak_mib():.0f} MiB")  # fmt: skip
    click.echo(out)


@cli.command(cls=_Command)
@click.argument("model", type=_PATH)
@click.argument("items", nargs=-1, required=True)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items per item.")
@_filter_options
@_config_option
def similar(model: Path, items: tuple[str, ...], **o: Any) -> None:
    r"""Print the items that go best with ITEMS, as CSV.

    \b
    Example:
      recotransfer similar model P0001 P0002 --k 5
    """
    from recotransfer.readers import as_known
    from recotransfer.task import TransferTask

    task = TransferTask.load(model)
    known = task.recommender.catalogue_
    found = task.similar_items(as_known(items, known), o["k"], filter=_filter(o["allow"], o["deny"], o["where"], known))
    frame = found.to_frame("item", "similar")
    title = _title_column(task)
    if title is not None:
        names = dict(zip(known.ids.tolist(), title, strict=True))
        frame["title"] = frame["similar"].map(names)
    click.echo(frame.to_csv(index=False, float_format="%.4f"), nl=False)


def _title_column(task: TransferTask) -> Any:
    columns = task.recommender.item_columns
    if columns is None:
        return None
    text = [c for c in columns.columns if task.kinds_.get(c) == "text"]
    return columns[text[0]].tolist() if text else None


@cli.command(cls=_Command)
@click.argument("model", type=_PATH)
def inspect(model: Path) -> None:
    r"""Print what a saved model is, as JSON.

    \b
    Example:
      recotransfer inspect model
    """
    from recotransfer.artifacts import open_artifact
    from recotransfer.recommenders.base import FactorModel
    from recotransfer.task import TransferTask

    artifact = open_artifact(model)
    task = TransferTask.load(model)
    known = task.recommender
    facts: dict[str, Any] = {
        "format": artifact.manifest["format"],
        "package": artifact.manifest["package"],
        "bytes": sum(part["bytes"] for part in artifact.manifest["parts"].values()),
        "recommender": type(known).__name__,
        "settings": known.params(),
        "users": len(known.events_.users),
        "items": len(known.catalogue_),
        "items without events": int((known.popularity_ == 0).sum()),
        "events": len(known.events_),
        "timed": known.events_.time is not None,
        "columns": [] if known.item_columns is None else list(known.item_columns.columns),
        "encoders": [encoder.spec() for encoder in task.encoders_],
        "weights": task.weights,
        "new items": known.scores_new_items,
        "new users": known.scores_new_users,
    }
    if isinstance(known, FactorModel):
        facts["index"] = known.index_report_
    click.echo(json.dumps(facts, indent=1, default=str))


@cli.command(cls=_Command)
@click.option("--data", type=_PATH, default=Path("sample_data"), show_default=True, help="Folder of the sample shop.")
@click.option("--out", type=_PATH, default=Path("demo_out"), show_default=True, help="Folder for model and results.")
@click.option("--image-encoder", help="transformers vision model name or folder, to use the pictures as well.")
def demo(data: Path, out: Path, image_encoder: str | None) -> None:
    r"""Run the main job on the sample shop and show what comes out.

    \b
    Example:
      recotransfer demo --out demo_out
    """
    from recotransfer.demo import run

    run(data, out, image_encoder)


def main() -> None:
    """Entry point: errors of the package end in one line, not a traceback."""
    # Idle OpenMP threads that spin slow every other pool in the process; this must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        cli(standalone_mode=True)
    except RecoTransferError as error:
        click.echo(f"recotransfer: {error}", err=True)
        sys.exit(2)
