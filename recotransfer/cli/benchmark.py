"""The command `recotransfer benchmark`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from recotransfer.cli.inputs import read_catalogue, read_events, task_of
from recotransfer.cli.options import PATH, config_option, content_options, count_of, event_options, say
from recotransfer.errors import InputError

if TYPE_CHECKING:
    from recotransfer.data import Items
    from recotransfer.evaluation.split import Split


@click.command()
@click.option("--items", required=True, help="Catalogue: CSV, Parquet or database URL.")
@click.option("--events", required=True, help="Log of events; with --test, the training events.")
@click.option("--out", required=True, type=PATH, help="Folder for results, report and models.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="VARIANT",
    help="Recommender to compare, e.g. EASE, 'EASE(reg=100)', mine=package.module:Class; by default all.",
)
@click.option(
    "--split",
    type=click.Choice(["time", "leave-last", "cold-items", "cold-users", "random"]),
    default="time",
    show_default=True,
    help="Held-out events: those after a point in time, each user's last one, ...",
)
@click.option("--valid", help="Your own validation events, instead of --split; needs --test.")
@click.option("--test", help="Your own test events; needs --valid.")
@click.option(
    "--history",
    help="With --test: users' histories in validation and test; by default the training "
    "events, plus the validation events in the test.",
)
@click.option(
    "--held-out-items-only",
    is_flag=True,
    help="With --test: rank only the items that occur in the part, as cold-item protocols do.",
)
@click.option("--no-content", is_flag=True, help="Compare recommenders on behaviour only.")
@content_options
@event_options
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Models fitted to tune each variant."
)
@click.option(
    "--k",
    "ks",
    type=click.IntRange(1),
    multiple=True,
    default=[10],
    show_default=True,
    help="List lengths to report; settings are chosen by NDCG at the first.",
)
@click.option("--refit", is_flag=True, help="Refit with the validation events before the test.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits, search and intervals.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Variants to run in parallel.")
@click.option("--threads", type=click.IntRange(1), help="Threads per variant; by default cores divided by workers.")
@click.option("--title", default="Offline benchmark", help="Title of the report.")
@click.option("--resume", is_flag=True, help="Resume an interrupted benchmark.")
@config_option
def benchmark(**o: Any) -> None:
    """Compare recommenders on your own data: equally tuned, tested once, with intervals and a report.

    Recommenders that use content are also run without it (the ablation), and the guard tests whether content helps.

    \b
    Example:
      recotransfer benchmark --items items.csv --events events.csv --out bench
      recotransfer benchmark --items items.csv --events events.csv --out bench --split leave-last \\
          --model HybridItems --model 'EASE(reg=100)' --model mine=my_shop.models:Mine --trials 40
    """  # noqa: D301
    from recotransfer.experiments.benchmark import Benchmark, table, variants_of

    items = read_catalogue(o)
    split = _split_of(o, items)
    catalogue = split.train.items.union(items.ids)
    variants = variants_of(o["models"], items=len(catalogue), content=not o["no_content"])
    say(_split_summary(split))
    task = task_of(o, items)
    threads = o["threads"] or max(1, (os.cpu_count() or 1) // o["workers"])
    run = Benchmark(o["out"], tuple(dict.fromkeys(o["ks"])), o["trials"], o["refit"], o["seed"], o["workers"], threads)
    results = run.run(items, split, variants, task=task, title=o["title"], resume=o["resume"])
    say(table(results))

    for verdict in results["guard"]:
        words = f"{verdict['variant']}, on validation: {verdict['words']}"
        say(click.wrap_text(words, 110, subsequent_indent="  "))

    failed = [variant["name"] for variant in results["variants"] if variant["failed"] is not None]
    if failed:
        say(f"some variants failed, see {o['out']}/variants/NAME/traceback.txt; --resume runs them again")

    say(f"report: {o['out'] / 'report.html'}")
    click.echo(o["out"] / "results.json")


def _split_summary(split: Split) -> str:
    """Sizes of the parts, events that the protocol leaves out, and users without any history."""
    facts = split.facts
    sizes = ", ".join(f"{len(getattr(split, name)):,} {name}" for name in ("train", "valid", "test"))
    lines = [f"{split.name}: {sizes} events"]
    lines += [f"  {count_of(n, 'event')} left out ({why})" for why, n in facts.get("left_out", {}).items() if n]
    if split.name == "given":
        without = facts["users_without_history"]
        lines += [f"  {count_of(n, f'{name} user')} without any history" for name, n in without.items() if n]

    return "\n".join(lines)


def _split_of(o: Mapping[str, Any], items: Items) -> Split:
    """The split that the options describe."""
    from recotransfer.evaluation import splits

    events = read_events(o["events"], o, items.ids)
    if (o["valid"] is None) != (o["test"] is None):
        raise InputError("--valid and --test go together; give both, or neither to split --events by --split")

    if o["valid"] is not None:
        valid, test = (read_events(o[part], o, items.ids) for part in ("valid", "test"))
        history = None if o["history"] is None else read_events(o["history"], o, items.ids)
        ranked = [
            list(dict.fromkeys(p.items.take(p.item))) if o["held_out_items_only"] else None for p in (valid, test)
        ]
        return splits.given(events, valid, test, history=history, valid_items=ranked[0], test_items=ranked[1])

    if o["history"] is not None or o["held_out_items_only"]:
        raise InputError("--history and --held-out-items-only need your own parts; give --valid and --test too")

    name, seed = o["split"], o["seed"]
    if name == "time":
        if events.time is None:
            raise InputError(
                f"--split time (the default) needs times, and {o['events']} has none; give --split random, or "
                "--split leave-last if its rows are in the order of the events; if a column holds times, name it by "
                "--event-column time=COLUMN"
            )

        return splits.time_cut(events)
    if name == "leave-last":
        return splits.leave_last(events)

    draw = {"cold-items": splits.cold_items, "cold-users": splits.cold_users, "random": splits.random_per_user}[name]

    return draw(events, seed=seed)
