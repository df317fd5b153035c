"""The `recotransfer` commands. Each is thin: it reads its inputs, makes one call and reports."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from recotransfer._version import __version__
from recotransfer.cli.adapt import adapt, label
from recotransfer.cli.benchmark import benchmark
from recotransfer.cli.inputs import filter_of, ids_of, read_catalogue, read_events, task_of
from recotransfer.cli.options import (
    PATH,
    config_option,
    content_options,
    count_of,
    event_options,
    filter_options,
    say,
    settings,
    threads_option,
)
from recotransfer.errors import InputError, RecoTransferError
from recotransfer.registry import import_module
from recotransfer.settings import parse_named

if TYPE_CHECKING:
    from recotransfer.data import Interactions, Items
    from recotransfer.recommenders import Recommender
    from recotransfer.task import TransferTask


def _load(model: Path) -> TransferTask:
    """Load the saved model and print its notice."""
    from recotransfer.task import TransferTask

    task = TransferTask.load(model)
    if task.notice:
        say(task.notice)

    return task


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--import", "modules", multiple=True, metavar="MODULE",
              help="Your own module that defines classes of a saved model.")  # fmt: skip
def cli(modules: Sequence[str]) -> None:
    """Recommend items from a catalogue, a log of events and pretrained encoders of the items' content.

    \b
    recotransfer demo                                       # everything on a small sample shop
    recotransfer fit --items items.csv --events events.csv --out model
    recotransfer recommend model --out recs                 # Parquet for every user
    """  # noqa: D301
    for module in modules:
        import_module(module, f"--import {module}")


@cli.command()
@click.option("--items", required=True, help="Catalogue: CSV, Parquet or database URL.")
@click.option("--events", required=True, help="Log of events: CSV, Parquet or database URL.")
@click.option("--out", required=True, type=PATH, help="Folder for the model.")
@click.option("--recommender", default="LearnedHybrid", show_default=True,
              help="Recommender, e.g. 'EASE(reg=100)'; your own as package.module:Class.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the recommender.")
@click.option("--no-content", is_flag=True, help="Use behaviour only (the ablation).")
@click.option(
    "--no-guard", is_flag=True, help="LearnedHybrid: use content even where held-out events speak against it."
)
@content_options
@event_options
@click.option(
    "--trials",
    type=click.IntRange(1),
    help="Tune settings on held-out events by fitting this many models; resumes if interrupted.",
)
@click.option("--valid", help="Events to tune settings on; by default each user's last event is held out.")
@click.option("--valid-allow", type=PATH, help="File of item ids: rank only these items during tuning.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="List length during tuning.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option("--index-recall", type=click.FloatRange(0, 1, min_open=True),
              help="Factor models: choose the fastest index with this recall for single requests.")  # fmt: skip
@click.option("--index", metavar="NAME(SETTINGS)",
              help="Factor models: index for single requests; your own as package.module:Class.")  # fmt: skip
@threads_option
@config_option
def fit(**o: Any) -> None:
    """Encode the items of a catalogue, fit a recommender on a log of events, and save it.

    \b
    Example:
      recotransfer fit --items sample_data/items.csv --events sample_data/events.csv --out model
      recotransfer fit --items "sqlite:///shop.db#items" --events "sqlite:///shop.db#events" --out model --trials 20
    """  # noqa: D301
    from recotransfer.experiments.benchmark.work import peak_memory_mib
    from recotransfer.recommenders.factor_model import FactorModel
    from recotransfer.recommenders.learned_hybrid import LearnedHybrid
    from recotransfer.registry import indexes

    index = indexes.make(o["index"]) if o["index"] else None
    _check_out(o["out"], o["cache"])
    recommender = _recommender(o)
    items = read_catalogue(o)
    events = read_events(o["events"], o, items.ids)
    task = task_of(o, items, recommender)
    start = time.perf_counter()
    task = _fit_tuned(task, items, events, o) if o["trials"] else task.fit(items, events)
    seconds = time.perf_counter() - start

    for report in task.reports_:
        say(report)

    if isinstance(task.recommender, FactorModel) and o["index_recall"]:
        say(task.recommender.choose_index(o["index_recall"]).index_report_)
    elif isinstance(task.recommender, FactorModel) and index is not None:
        say(task.recommender.use_index(index).index_report_)

    if isinstance(task.recommender, LearnedHybrid):
        for sentence in task.recommender.in_words():
            say(sentence)

    task.save(o["out"])
    _journal(o["out"]).unlink(missing_ok=True)
    users, catalogue = count_of(len(events.users), "user"), count_of(len(task.recommender.catalogue_), "item")
    spent = f"{seconds:.1f} s{', tuning included' if o['trials'] else ''}"
    say(f"fitted {type(recommender).__name__} on {count_of(len(events), 'event')} of {users} and {catalogue} "
         f"in {spent}, peak memory {peak_memory_mib():.0f} MiB")  # fmt: skip
    click.echo(o["out"])


def _check_out(out: Path, cache: Path | None) -> None:
    """Raise `InputError` if the model could not be saved to `out`: now, rather than after hours of fitting."""
    from recotransfer.io.artifacts import check_replaceable

    if cache is not None and cache.absolute().is_relative_to(out.absolute()):
        raise InputError(f"--cache {cache} is inside --out {out}; keep the cache outside the model's folder")

    check_replaceable(out)


def _recommender(o: Mapping[str, Any]) -> Recommender:
    """The recommender that the options describe, not fitted."""
    from recotransfer.recommenders.factor_model import FactorModel
    from recotransfer.recommenders.learned_hybrid import LearnedHybrid
    from recotransfer.registry import recommenders

    kind: type[Recommender] = recommenders.find(parse_named(o["recommender"]).name)
    if flag := next((flag for flag in ("index_recall", "index") if o[flag]), None):
        if not issubclass(kind, FactorModel):
            raise InputError(f"{kind.__name__} has no index to choose; leave --{flag.replace('_', '-')} out")
        if o["index_recall"] and o["index"]:
            raise InputError("--index names an index and --index-recall chooses one; give only one of them")

    if o["trials"] and o["tuners"]:
        raise InputError("--trials and --tuner do not go together, as the encoder would have to be tuned again without "
                         "the held-out events; tune it in a run of its own and give its folder as --text-encoder "
                         "here")  # fmt: skip

    given = settings(kind, o["settings"])
    if o["no_guard"]:
        if not issubclass(kind, LearnedHybrid):
            raise InputError(f"{kind.__name__} has no guard to switch off; leave --no-guard out")

        given["guard"] = False

    made: Recommender = recommenders.make(o["recommender"], **given)

    return made


def _journal(out: Path) -> Path:
    """The file of finished trials, beside the folder of the model."""
    return out.with_name(out.name + ".trials.json")


def _fit_tuned(task: TransferTask, items: Items, events: Interactions, o: Mapping[str, Any]) -> TransferTask:
    """A task fitted with the best settings on held-out events. The trials are written to a file beside the model.

    Until the model is saved, they are also in a journal there, from which an interrupted search continues.
    """
    from recotransfer.experiments import tune
    from recotransfer.io.artifacts import atomic_file
    from recotransfer.task import TransferTask

    valid = None if o["valid"] is None else read_events(o["valid"], o, items.ids, events.users)
    allow = None if o["valid_allow"] is None else ids_of(o["valid_allow"], "item", items.ids)
    journal = _journal(o["out"])
    if journal.exists():
        say(f"continuing the search in {journal}")

    tuned = tune(
        task, items, events, valid=valid, allow=allow, trials=o["trials"], k=o["k"], seed=o["seed"], journal=journal
    )
    first, best = tuned.trials["ndcg"].iloc[0], tuned.trials["ndcg"].max()
    chosen = json.dumps({**tuned.params, **({"weights": tuned.weights} if tuned.weights else {})})
    trials = count_of(len(tuned.trials), "trial")
    say(f"{trials}: NDCG@{o['k']} on held-out events {first:.4f} as given, {best:.4f} with {chosen}")
    path = o["out"].with_name(o["out"].name + ".trials.csv")

    with atomic_file(path) as file:
        tuned.trials.to_csv(file, index_label="trial")

    say(f"every trial: {path}")
    model = type(task.recommender)(**tuned.params)
    best_task = TransferTask(
        model, encoders=task.encoders_, weights=tuned.weights, transfers=task.transfers, cache=task.cache
    )
    best_task.fit(items, events, embeddings=tuned.embeddings)
    best_task.reports_ = task.reports_

    return best_task


@cli.command()
@click.argument("model", type=PATH)
@click.option(
    "--out",
    required=True,
    help="Folder for Parquet shards and their manifest, or a database table: sqlite:///shop.db#recs.",
)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items per user.")
@click.option("--users", type=PATH, help="File with a column of user ids; by default all users.")
@click.option("--histories", help="Events of known or new users to recommend for, instead of those seen by fit.")
@event_options
@filter_options
@click.option("--include-seen", is_flag=True, help="Also recommend items from the user's own history.")
@click.option("--reasons", is_flag=True, help="Also write which items of the history and model parts contributed.")
@click.option("--shard", type=click.IntRange(1), default=20_000, show_default=True, help="Users per file.")
@click.option("--resume", is_flag=True, help="Resume an interrupted job.")
@threads_option
@config_option
def recommend(model: Path, out: str, **o: Any) -> None:
    """Write the best items for all users, or for selected ones, to Parquet or to a database.

    \b
    Example:
      recotransfer recommend model --out recs --k 20 --where 'in_stock and price < 50'
      recotransfer recommend model --out recs-new --histories new_users.csv --reasons
      recotransfer recommend model --out 'sqlite:///shop.db#recs'
    """  # noqa: D301
    from recotransfer.experiments.benchmark.work import peak_memory_mib
    from recotransfer.io.artifacts import sha256
    from recotransfer.io.writers import database_name, write_recommendations
    from recotransfer.serving.batch import BatchJob

    task = _load(model)
    catalogue = task.recommender.catalogue_
    histories = None if o["histories"] is None else read_events(o["histories"], o, catalogue)
    known = task.recommender.known_events().users if histories is None else histories.users
    users = None if o["users"] is None else ids_of(o["users"], "user", known)
    job = BatchJob(Path(out), o["k"], not o["include_seen"], filter_of(o, catalogue), o["reasons"], o["shard"])
    start = time.perf_counter()
    if "://" in out:
        if o["resume"]:
            raise InputError("--resume needs a folder of shards; a database table is written at once, so leave it out")

        lists = job.lists(task.recommender, users=users, histories=histories)
        rows = write_recommendations(lists, out)
        say(f"{count_of(rows, 'row')} in {time.perf_counter() - start:.1f} s, peak memory {peak_memory_mib():.0f} MiB")
        click.echo(database_name(out))
        return

    manifest = job.run(
        task.recommender,
        model=sha256(model / "manifest.json"),
        users=users,
        histories=histories,
        resume=o["resume"],
    )
    seconds = time.perf_counter() - start
    rows = sum(shard["rows"] for shard in manifest["shards"])
    say(f"{count_of(rows, 'row')} for {count_of(manifest['users'], 'user')} in {seconds:.1f} s, "
         f"{count_of(len(manifest['shards']), 'shard')}, peak memory {peak_memory_mib():.0f} MiB")  # fmt: skip
    click.echo(out)


@cli.command()
@click.argument("model", type=PATH)
@click.argument("items", nargs=-1, required=True)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items per item.")
@filter_options
@config_option
def similar(model: Path, items: tuple[str, ...], **o: Any) -> None:
    """Print the most similar items to each of ITEMS, as CSV.

    \b
    Example:
      recotransfer similar model P0001 P0002 --k 5
    """  # noqa: D301
    from recotransfer.io.readers import as_known

    task = _load(model)
    known = task.recommender.catalogue_
    found = task.similar_items(as_known(items, known), min(o["k"], len(known)), filter=filter_of(o, known))
    frame = found.to_frame("item", "similar")
    title = _title_column(task)
    if title is not None:
        names = dict(zip(known.ids.tolist(), title, strict=True))
        frame["title"] = frame["similar"].map(names)

    click.echo(frame.to_csv(index=False, float_format="%.4f"), nl=False)


def _title_column(task: TransferTask) -> list[Any] | None:
    """The first text column, in catalogue order; None if the model keeps none."""
    columns = task.recommender.item_columns_
    if columns is None:
        return None

    text = [c for c in columns.columns if task.kinds_.get(c) == "text"]
    return columns[text[0]].tolist() if text else None


@cli.command()
@click.argument("model", type=PATH)
def inspect(model: Path) -> None:
    """Print the facts about a saved model, as JSON.

    \b
    Example:
      recotransfer inspect model
    """  # noqa: D301
    from recotransfer.encoders import encoder_spec
    from recotransfer.io.artifacts import open_artifact
    from recotransfer.recommenders.factor_model import FactorModel
    from recotransfer.recommenders.learned_hybrid import LearnedHybrid

    artifact = open_artifact(model)
    task = _load(model)
    recommender = task.recommender
    facts: dict[str, Any] = {
        "format": artifact.manifest["format"],
        "package": artifact.manifest["package"],
        "bytes": sum(part["bytes"] for part in artifact.manifest["parts"].values()),
        "recommender": type(recommender).__name__,
        "settings": recommender.params(),
        "users": len(recommender.events_.users),
        "items": len(recommender.catalogue_),
        "items without events": int((recommender.popularity_ == 0).sum()),
        "events": len(recommender.events_),
        "timed": recommender.events_.time is not None,
        "columns": [] if recommender.item_columns_ is None else list(recommender.item_columns_.columns),
        "encoders": [encoder_spec(encoder) for encoder in task.encoders_],
        "weights": task.weights,
        "new items": recommender.scores_new_items,
        "new users": recommender.scores_new_users,
    }
    if isinstance(recommender, LearnedHybrid):
        facts["weights in words"] = recommender.in_words()

    if isinstance(recommender, FactorModel):
        facts["index"] = recommender.index_report_

    click.echo(json.dumps(facts, indent=1, default=str))


@cli.command()
@click.option("--data", type=PATH, default=Path("sample_data"), show_default=True, help="Folder of the sample shop.")
@click.option("--out", type=PATH, default=Path("demo_out"), show_default=True, help="Folder for model and results.")
@click.option("--image-encoder", help="transformers vision model (name or folder), to use the pictures as well.")
def demo(data: Path, out: Path, image_encoder: str | None) -> None:
    """Fit a recommender on the sample shop and show what it recommends.

    \b
    Example:
      recotransfer demo --out demo_out
    """  # noqa: D301
    from recotransfer.cli.demo import run

    run(data, out, image_encoder)


cli.add_command(adapt)
cli.add_command(benchmark)
cli.add_command(label)


def main() -> None:
    """Entry point. Expected errors become one sentence on stderr and exit status 2 (130 when interrupted)."""
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
        _stop(f"recotransfer: {place}{error.strerror or error}; check the path, its permissions and the disk space")
    except MemoryError as error:
        _stop(
            f"recotransfer: out of memory ({error}); recommend for fewer users at a time (--shard), or fit fewer items"
        )
    except (click.Abort, KeyboardInterrupt):
        _stop(
            "recotransfer: interrupted; finished shards and variants (see --resume), trials of fit (run it again) and "
            "cached vectors (see --cache) are kept",
            130,
        )


def _stop(message: str, status: int = 2) -> NoReturn:
    """Print the message to stderr and exit."""
    click.echo(message, err=True)
    sys.exit(status)
