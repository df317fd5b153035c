"""The command line. Thin: each command reads, calls one thing, reports."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from recotransfer import __version__
from recotransfer.adapt import adapt, label
from recotransfer.errors import InputError, RecoTransferError, UnknownIdError
from recotransfer.flags import config_option, numbers, pairs, settings

if TYPE_CHECKING:
    from recotransfer.data import IdMap, Interactions, Items
    from recotransfer.encoders import Encoder
    from recotransfer.filters import Filter
    from recotransfer.recommenders import Recommender
    from recotransfer.splits import Split
    from recotransfer.task import TransferTask

_PATH = click.Path(path_type=Path)


def _say(*words: Any) -> None:
    click.echo(" ".join(str(w) for w in words), err=True)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _loaded(model: Path) -> TransferTask:
    """The saved model; what whoever is given its results is to read is said."""
    from recotransfer.task import TransferTask

    task = TransferTask.load(model)
    if task.notice:
        _say(task.notice)
    return task


def _filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--where", help="Only items for which this holds, e.g. 'price < 20 and category == \"Mugs\"'."),
        click.option("--deny", type=_PATH, help="File with a column of item ids never to recommend."),
        click.option("--allow", type=_PATH, help="File with a column of item ids; only these are recommended."),
    ):
        command = option(command)
    return command


def _content_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--cache", type=_PATH, help="Folder that keeps encoded content between runs."),
        click.option("--item-column", "item_columns", multiple=True, metavar="ROLE=COLUMN",
                     help="Role item in the catalogue."),
        click.option("--kind", "kinds", multiple=True, metavar="COLUMN=KIND",
                     help="Kind of an item column: text, image, ..."),
        click.option("--only", multiple=True, metavar="COLUMN",
                     help="Item columns to encode; all others are for filters only."),
        click.option("--weight", "weights", multiple=True, metavar="MODALITY=NUMBER",
                     help="Weight of text, image, attributes."),
        click.option("--image-encoder",
                     help="transformers vision model name or folder; pictures are left out without one."),
        click.option("--text-encoder",
                     help="sentence-transformers name or folder; default all-MiniLM-L6-v2, installed."),
    ):  # fmt: skip
        command = option(command)
    return command


def _read_catalogue(o: Mapping[str, Any]) -> Items:
    """The catalogue as the content options say; the report goes to stderr."""
    from recotransfer.readers import read_items

    read = read_items(o["items"], columns=pairs(o["item_columns"], "item-column"), kinds=_kinds(o["kinds"]))
    _say(read.report)
    return read.data


def _event_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _read_events(source: str, o: Mapping[str, Any], items: IdMap, users: IdMap | None = None) -> Interactions:
    """The events of `source` as the event options say; the report goes to stderr."""
    from recotransfer.readers import EventWeights, read_interactions

    weighing = EventWeights(
        weights=numbers(o["event_weights"], "event-weight"),
        rating_threshold=o["rating_threshold"],
        rating_as_weight=o["rating_as_weight"],
    )
    columns = pairs(o["event_columns"], "event-column")
    read = read_interactions(
        source, columns=columns, events=weighing, items=items, users=users, time_format=o["time_format"]
    )
    _say(read.report)
    return read.data


def _ids_of(path: Path, role: Literal["user", "item"], known: IdMap) -> Any:
    """The ids in a file's id column, or its only one, as the model holds them."""
    from recotransfer.readers import read_ids

    try:
        return read_ids(path, role=role, known=known)
    except UnknownIdError as cause:
        raise UnknownIdError(f"{path}: {cause}") from None


def _filter(o: Mapping[str, Any], known: IdMap) -> Filter | None:
    from recotransfer.filters import Filter

    if o["allow"] is None and o["deny"] is None and o["where"] is None:
        return None
    return Filter(
        None if o["allow"] is None else _ids_of(o["allow"], "item", known),
        () if o["deny"] is None else _ids_of(o["deny"], "item", known),
        o["where"],
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Recommendations from a catalogue and a log of events, with what pretrained encoders know of the items.

    \b
    recotransfer demo                                       # the whole of it on a little shop
    recotransfer fit --items items.csv --events events.csv --out model
    recotransfer recommend model --out recs                 # Parquet for every user
    """  # noqa: D301


@cli.command()
@click.option("--items", required=True, help="Catalogue: CSV, Parquet or database URL.")
@click.option("--events", required=True, help="Log of events: CSV, Parquet or database URL.")
@click.option("--out", required=True, type=_PATH, help="Folder for the model.")
@click.option("--recommender", default="HybridItems", show_default=True,
              help="Class of the recommender; your own as package.module:Class.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the recommender.")
@click.option("--no-content", is_flag=True, help="Behaviour only: the control arm.")
@_content_options
@_event_options
@click.option("--trials", type=click.IntRange(1), help="Choose settings on held-out events, fitting this many models.")
@click.option("--valid", help="Events to choose settings on; by default each user's last one is held out.")
@click.option("--valid-allow", type=_PATH, help="File of item ids: rank only these while choosing.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="List length while choosing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option("--index-recall", type=click.FloatRange(0, 1, min_open=True),
              help="Models of factors: choose the quickest index with this recall for single requests.")  # fmt: skip
@config_option
def fit(**o: Any) -> None:
    """Read a catalogue and a log, encode the items, fit a recommender, save it.

    \b
    Example:
      recotransfer fit --items sample_data/items.csv --events sample_data/events.csv --out model
      recotransfer fit --items "sqlite:///shop.db#items" --events "sqlite:///shop.db#events" --out model --trials 20
    """  # noqa: D301
    from recotransfer.arms import peak_memory_mib
    from recotransfer.recommenders.base import FactorModel
    from recotransfer.task import TransferTask

    _check_outcome(o["out"], o["cache"])
    recommender = _recommender(o)
    items = _read_catalogue(o)
    events = _read_events(o["events"], o, items.ids)
    weights = numbers(o["weights"], "weight") or None
    task = TransferTask(recommender, encoders=_encoders(o, items), weights=weights, cache=o["cache"])
    start = time.perf_counter()
    task = _tuned(task, items, events, o) if o["trials"] else task.fit(items, events)
    seconds = time.perf_counter() - start
    for report in task.reports_:
        _say(report)
    if isinstance(task.recommender, FactorModel) and o["index_recall"]:
        _say(task.recommender.choose_index(o["index_recall"]).index_report_)
    task.save(o["out"])
    users, catalogue = _count(len(events.users), "user"), _count(len(task.recommender.catalogue_), "item")
    spent = f"{seconds:.1f} s{', the choice of settings included' if o['trials'] else ''}"
    _say(f"fitted {type(recommender).__name__} on {_count(len(events), 'event')} of {users} and {catalogue} "
         f"in {spent}, peak memory {peak_memory_mib():.0f} MiB")  # fmt: skip
    click.echo(o["out"])


def _check_outcome(out: Path, cache: Path | None) -> None:
    """Refuse, before hours of work, a folder into which the model could not be saved after them."""
    from recotransfer.artifacts import check_replaceable

    if cache is not None and cache.absolute().is_relative_to(out.absolute()):
        raise InputError(f"--cache {cache} lies within --out {out}; keep the cache outside the model's folder")
    check_replaceable(out)


def _kinds(values: Sequence[str]) -> Any:
    return pairs(values, "kind")


def _recommender(o: Mapping[str, Any]) -> Recommender:
    from recotransfer.recommenders import by_name
    from recotransfer.recommenders.base import FactorModel

    kind = by_name(o["recommender"])
    if o["index_recall"] and not issubclass(kind, FactorModel):
        raise InputError(f"{kind.__name__} has no index to choose; leave --index-recall out")
    return kind(**settings(kind, o["settings"]))


def _encoders(o: Mapping[str, Any], items: Items) -> list[Encoder] | None:
    from recotransfer.encoders import default_encoders

    if o["no_content"]:
        return []
    for kind in ("text", "image"):
        if o[f"{kind}_encoder"] and not items.of_kind(kind):
            raise InputError(f"--{kind}-encoder: no column of {o['items']} holds {kind}s; name one by "
                             f"--kind COLUMN={kind}")  # fmt: skip
    if not (o["text_encoder"] or o["image_encoder"] or o["only"]):
        return None
    return default_encoders(items, text_model=o["text_encoder"], image_model=o["image_encoder"], only=o["only"] or None)


def _tuned(task: TransferTask, items: Items, events: Interactions, o: Mapping[str, Any]) -> TransferTask:
    """A task fitted with the settings that did best on held-out events; every trial is in a file beside the model."""
    from recotransfer.artifacts import atomic_file
    from recotransfer.task import TransferTask
    from recotransfer.tuning import tune

    valid = None if o["valid"] is None else _read_events(o["valid"], o, items.ids, events.users)
    allow = None if o["valid_allow"] is None else _ids_of(o["valid_allow"], "item", items.ids)
    tuned = tune(task, items, events, valid=valid, allow=allow, trials=o["trials"], k=o["k"], rng=o["seed"])
    first, best = tuned.trials["ndcg"].iloc[0], tuned.trials["ndcg"].max()
    chosen = json.dumps({**tuned.params, **({"weights": tuned.weights} if tuned.weights else {})})
    trials = _count(len(tuned.trials), "trial")
    _say(f"{trials}: NDCG@{o['k']} on held-out events {first:.4f} as given, {best:.4f} with {chosen}")
    path = o["out"].with_name(o["out"].name + ".trials.csv")
    with atomic_file(path) as file:
        tuned.trials.to_csv(file, index_label="trial")
    _say(f"every trial: {path}")
    model = type(task.recommender)(**tuned.params)
    best_task = TransferTask(model, encoders=task.encoders_, weights=tuned.weights, cache=task.cache)
    best_task.fit(items, events, parts=tuned.parts)
    best_task.reports_ = task.reports_
    return best_task


@cli.command()
@click.option("--items", required=True, help="Catalogue: CSV, Parquet or database URL.")
@click.option("--events", required=True, help="Log of events; with --test, the part to learn from.")
@click.option("--out", required=True, type=_PATH, help="Folder for results, report and models.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="ARM",
    help="Recommender to compare, e.g. EASE, 'EASE(reg=100)', mine=package.module:Class; default all.",
)
@click.option(
    "--split",
    type=click.Choice(["time", "leave-last", "cold-items", "cold-users", "random"]),
    default="time",
    show_default=True,
    help="How to hold events out: after a point in time, or each user's last one, ...",
)
@click.option("--valid", help="Your own held-out events to choose settings on, instead of --split; needs --test.")
@click.option("--test", help="Your own held-out events to test on; needs --valid.")
@click.option(
    "--history",
    help="With --test: what is known of each user at both questions; by default the training "
    "events, and for the test the validation events too.",
)
@click.option(
    "--held-out-items-only",
    is_flag=True,
    help="With --test: rank only the items of each part, as cold-item protocols do.",
)
@click.option("--no-content", is_flag=True, help="Compare recommenders of behaviour only.")
@_content_options
@_event_options
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Models fitted to tune each arm.")
@click.option(
    "--k",
    "ks",
    type=click.IntRange(1),
    multiple=True,
    default=[10],
    show_default=True,
    help="List lengths to report; NDCG at the first decides.",
)
@click.option("--refit", is_flag=True, help="Fit chosen settings again with the validation events before the test.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits, search and intervals.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Arms that run side by side.")
@click.option("--threads", type=click.IntRange(1), help="Threads of each; default: the cores divided by the workers.")
@click.option("--title", default="Offline benchmark", help="Title of the report.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted benchmark.")
@config_option
def benchmark(**o: Any) -> None:
    """Compare recommenders on your own data: tuned alike, tested once, with intervals and a report.

    Every recommender that uses content gets its control arm without it, and the guard says whether transfer helped.

    \b
    Example:
      recotransfer benchmark --items items.csv --events events.csv --out bench
      recotransfer benchmark --items items.csv --events events.csv --out bench --split leave-last \\
          --model HybridItems --model 'EASE(reg=100)' --model mine=my_shop.models:Mine --trials 40
    """  # noqa: D301
    from recotransfer.arms import arms_of
    from recotransfer.benchmark import Benchmark
    from recotransfer.report import table
    from recotransfer.task import TransferTask

    items = _read_catalogue(o)
    split = _split_of(o, items)
    catalogue = split.train.items.union(items.ids)
    arms = arms_of(o["models"], items=len(catalogue), content=not o["no_content"])
    _say(_told(split))
    weights = numbers(o["weights"], "weight") or None
    task = TransferTask(encoders=_encoders(o, items), weights=weights, cache=o["cache"])
    threads = o["threads"] or max(1, (os.cpu_count() or 1) // o["workers"])
    run = Benchmark(o["out"], tuple(dict.fromkeys(o["ks"])), o["trials"], o["refit"], o["seed"], o["workers"], threads)
    results = run.run(items, split, arms, task=task, title=o["title"], resume=o["resume"])
    _say(table(results))
    for verdict in results["guard"]:
        _say(click.wrap_text(f"{verdict['arm']}: {verdict['words']}", 110, subsequent_indent="  "))
    failed = [arm["name"] for arm in results["arms"] if arm["failed"] is not None]
    if failed:
        _say(f"why arms failed: {o['out']}/arms/NAME/traceback.txt; --resume tries them again")
    _say(f"report: {o['out'] / 'report.html'}")
    if len(failed) == len(results["arms"]):
        raise InputError(f"every arm failed, the first with {results['arms'][0]['failed']}")
    click.echo(o["out"] / "results.json")


def _told(split: Split) -> str:
    """What is learned from and asked, what the protocol left out, and users of whom nothing is known."""
    facts = split.facts
    words = ", ".join(f"{len(getattr(split, name)):,} {name}" for name in ("train", "valid", "test"))
    lines = [f"{split.name}: {words} events"]
    lines += [f"  {_count(n, 'event')} left out ({why})" for why, n in facts.get("left_out", {}).items() if n]
    if split.name == "given":
        unknown = facts["users_without_history"]
        lines += [f"  {_count(n, f'{name} user')} without any history" for name, n in unknown.items() if n]
    return "\n".join(lines)


def _split_of(o: Mapping[str, Any], items: Items) -> Split:
    """The protocol that the flags ask for."""
    from recotransfer import splits

    events = _read_events(o["events"], o, items.ids)
    if (o["valid"] is None) != (o["test"] is None):
        raise InputError("--valid and --test go together; give both, or neither for a --split of --events")
    if o["valid"] is not None:
        valid, test = (_read_events(o[part], o, items.ids) for part in ("valid", "test"))
        history = None if o["history"] is None else _read_events(o["history"], o, items.ids)
        ranked = [
            list(dict.fromkeys(p.items.take(p.item))) if o["held_out_items_only"] else None for p in (valid, test)
        ]
        return splits.given(events, valid, test, history=history, valid_items=ranked[0], test_items=ranked[1])
    if o["history"] is not None or o["held_out_items_only"]:
        raise InputError("--history and --held-out-items-only describe --test; give --valid and --test too")
    name, seed = o["split"], o["seed"]
    if name == "time":
        return splits.time_cut(events)
    if name == "leave-last":
        return splits.leave_last(events)
    draw = {"cold-items": splits.cold_items, "cold-users": splits.cold_users, "random": splits.random_per_user}[name]
    return draw(events, rng=seed)


@cli.command()
@click.argument("model", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder for the Parquet shards and their manifest.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items per user.")
@click.option("--users", type=_PATH, help="File with a column of user ids; default everyone.")
@click.option("--histories", help="Events of users, known or new, to recommend for; replaces what fit saw.")
@_event_options
@_filter_options
@click.option("--include-seen", is_flag=True, help="Items of the user's own history may be recommended.")
@click.option("--reasons", is_flag=True, help="Also write which own items and which parts of the model counted.")
@click.option("--shard", type=click.IntRange(1), default=20_000, show_default=True, help="Users per file.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted job.")
@config_option
def recommend(model: Path, out: Path, **o: Any) -> None:
    """Write the best items of every user, or of those asked for, to Parquet.

    \b
    Example:
      recotransfer recommend model --out recs --k 20 --where 'in_stock and price < 50'
      recotransfer recommend model --out recs-new --histories new_users.csv --reasons
    """  # noqa: D301
    from recotransfer.arms import peak_memory_mib
    from recotransfer.artifacts import sha256
    from recotransfer.batch import BatchJob

    task = _loaded(model)
    catalogue = task.recommender.catalogue_
    histories = None if o["histories"] is None else _read_events(o["histories"], o, catalogue)
    known = task.recommender.events_.users if histories is None else histories.users
    job = BatchJob(out, o["k"], not o["include_seen"], _filter(o, catalogue), o["reasons"], o["shard"])
    start = time.perf_counter()
    manifest = job.run(
        task.recommender,
        model=sha256(model / "manifest.json"),
        users=None if o["users"] is None else _ids_of(o["users"], "user", known),
        histories=histories,
        resume=o["resume"],
    )
    seconds = time.perf_counter() - start
    rows = sum(shard["rows"] for shard in manifest["shards"])
    _say(f"{_count(rows, 'row')} for {_count(manifest['users'], 'user')} in {seconds:.1f} s, "
         f"{_count(len(manifest['shards']), 'shard')}, peak memory {peak_memory_mib():.0f} MiB")  # fmt: skip
    click.echo(out)


@cli.command()
@click.argument("model", type=_PATH)
@click.argument("items", nargs=-1, required=True)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items per item.")
@_filter_options
@config_option
def similar(model: Path, items: tuple[str, ...], **o: Any) -> None:
    """Print the items that go best with ITEMS, as CSV.

    \b
    Example:
      recotransfer similar model P0001 P0002 --k 5
    """  # noqa: D301
    from recotransfer.readers import as_known

    task = _loaded(model)
    known = task.recommender.catalogue_
    found = task.similar_items(as_known(items, known), min(o["k"], len(known)), filter=_filter(o, known))
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


@cli.command()
@click.argument("model", type=_PATH)
def inspect(model: Path) -> None:
    """Print what a saved model is, as JSON.

    \b
    Example:
      recotransfer inspect model
    """  # noqa: D301
    from recotransfer.artifacts import open_artifact
    from recotransfer.recommenders.base import FactorModel

    artifact = open_artifact(model)
    task = _loaded(model)
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


@cli.command()
@click.option("--data", type=_PATH, default=Path("sample_data"), show_default=True, help="Folder of the sample shop.")
@click.option("--out", type=_PATH, default=Path("demo_out"), show_default=True, help="Folder for model and results.")
@click.option("--image-encoder", help="transformers vision model name or folder, to use the pictures as well.")
def demo(data: Path, out: Path, image_encoder: str | None) -> None:
    """Run the main job on the sample shop and show what comes out.

    \b
    Example:
      recotransfer demo --out demo_out
    """  # noqa: D301
    from recotransfer.demo import run

    run(data, out, image_encoder)


cli.add_command(adapt)
cli.add_command(label)


def main() -> None:
    """Entry point: what goes wrong ends in a sentence on stderr and exit status 2 (130 when interrupted)."""
    # Idle OpenMP threads that spin slow every other pool in the process; this must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        cli.main(prog_name="recotransfer", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        _stop(error.format_message())
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "recotransfer"
        _stop(f"recotransfer: {error.format_message().rstrip('.')}; see {command} --help")
    except RecoTransferError as error:
        _stop(f"recotransfer: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"recotransfer: {place}{error.strerror or error}; check the path, its rights and the room on the disk")
    except MemoryError as error:
        _stop(
            f"recotransfer: out of memory ({error}); recommend for fewer users at a time (--shard), or fit fewer items"
        )
    except (click.Abort, KeyboardInterrupt):
        _stop(
            "recotransfer: interrupted; finished shards, arms and trials (see --resume) and cached vectors "
            "(see --cache) are kept",
            130,
        )


def _stop(message: str, status: int = 2) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(status)
