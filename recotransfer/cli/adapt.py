"""The command line of the adapters: `adapt` learns labels of pictures, texts and records, `label` gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from recotransfer.cli.options import config_option
from recotransfer.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from recotransfer.experiments import Outcome, Problem
    from recotransfer.task import TransferTask


_PATH = click.Path(path_type=Path)


def _source(context: click.Context, parameter: click.Parameter, value: str) -> str | Path:
    """A database URL as it is, anything else as a path."""
    return value if "://" in value else Path(value)


def _learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--report", type=_PATH, help="JSON file for the figures of all variants."),
        click.option("--cache", type=_PATH, help="Folder that keeps encoded content between runs."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split and of training."),
        click.option("--epochs", type=click.IntRange(1), default=3, show_default=True,
                     help="Passes over the data at most, where the encoder is tuned."),
        click.option("--tune", is_flag=True,
                     help="Also fine-tune the encoder; the variant that validation prefers is saved."),
        click.option("--group", help="Column whose rows stay on one side of the split: patients, authors, products."),
        click.option("--part", help="Column with train, valid or test; by default a fifth is the test, by lot."),
        click.option("--label", default="label", show_default=True, help="Column with the labels; empty: unlabelled."),
        click.option("--out", required=True, type=_PATH, help="Folder for the model."),
    ):  # fmt: skip
        command = option(command)

    return command


@click.group()
def adapt() -> None:
    """Learn labels of pictures, texts or records with a pretrained encoder; `label` then gives them to new ones.

    A label is a user who holds the items that bear it: what recommends also classifies.
    """


@adapt.command()
@click.argument("table", callback=_source)
@click.option("--encoder", required=True, help="transformers vision model: a folder, or a name on the hub.")
@click.option("--column", default="image", show_default=True, help="Column with paths of pictures or their bytes.")
@_learning_options
@config_option
def vision(table: str | Path, **o: Any) -> None:
    """Pictures with labels: TABLE is CSV or Parquet, or a folder that has a folder of pictures for each label.

    \b
    Example:
      recotransfer adapt vision photos/ --encoder mobilenet_v2 --out model
      recotransfer adapt vision photos.csv --column file --label type --encoder mobilenet_v2 --out model --tune
    """  # noqa: D301
    from recotransfer.adapters import vision as adapter
    from recotransfer.encoders import PretrainedImage

    frame = _pictures(table, o)
    encoders = [PretrainedImage(model=o["encoder"], column=o["column"], folder=_folder_of(table))]
    part, groups = _parts(frame, o), _groups(frame, o)
    problem = adapter.classification(_content(frame, o), _labels(frame, o), part, encoders=encoders, groups=groups)
    _learn(problem, "image", o)


@adapt.command()
@click.argument("table", callback=_source)
@click.option(
    "--column", "columns", multiple=True, default=("text",), show_default=True, help="Column of text; several join."
)
@click.option("--encoder", help="sentence-transformers model: a folder, or a name on the hub; all-MiniLM-L6-v2.")
@_learning_options
@config_option
def nlp(table: str | Path, **o: Any) -> None:
    """Texts with labels; TABLE is CSV, Parquet or a database URL.

    \b
    Example:
      recotransfer adapt nlp reviews.csv --column title --column review --label stars --out model --tune
    """  # noqa: D301
    from recotransfer.adapters import nlp as adapter
    from recotransfer.encoders import SentenceText

    frame = _frame(table, [*o["columns"], o["label"]])
    encoders = [SentenceText(model=o["encoder"], column=list(o["columns"]))]
    texts, part, groups = frame[list(o["columns"])], _parts(frame, o), _groups(frame, o)
    _learn(adapter.classification(texts, _labels(frame, o), part, encoders=encoders, groups=groups), "text", o)


@adapt.command()
@click.argument("table", callback=_source)
@click.option("--of", "kind", type=click.Choice(["image", "table", "dna"]), required=True, help="What the records are.")
@click.option("--positive", required=True, help="The label that sensitivity speaks of.")
@click.option("--encoder", help="Pictures: a transformers vision model, a folder or a name on the hub.")
@click.option("--column", help="Column of pictures or sequences; by default image or sequence.")
@_learning_options
@config_option
def medical(table: str | Path, **o: Any) -> None:
    """Pictures, tables or DNA with diagnoses, probabilities calibrated. Not for clinical use.

    \b
    Example:
      recotransfer adapt medical scans.csv --of image --encoder mobilenet_v2 --positive ill --group patient --out model
      recotransfer adapt medical heart.csv --of table --label num --positive 1 --out model
      recotransfer adapt medical promoters.csv --of dna --label promoter --positive 1 --out model
    """  # noqa: D301
    from recotransfer.adapters import medical as adapter
    from recotransfer.encoders import PretrainedImage

    o["column"] = o["column"] or ("sequence" if o["kind"] == "dna" else "image")
    o["notice"] = adapter.NOTICE
    needed = [o["column"], o["label"]] if o["kind"] == "dna" else [o["label"]]
    frame = _pictures(table, o) if o["kind"] == "image" else _frame(table, needed)
    if o["tune"] and o["kind"] != "image":
        raise InputError(f"--tune changes a pretrained encoder, and --of {o['kind']} has none; leave it out")

    labels = [None if label is None else str(label) for label in _labels(frame, o)]
    if o["positive"] not in labels:
        raise InputError(f"no row has the label {o['positive']!r}; labels are {sorted({v for v in labels if v})[:5]}")

    facts = {"positive": o["positive"], "part": _parts(frame, o)}
    facts["families" if o["kind"] == "dna" else "patients"] = _groups(frame, o)
    if o["kind"] == "image":
        if o["encoder"] is None:
            raise InputError("pictures need a pretrained model; give --encoder")

        encoders = [PretrainedImage(model=o["encoder"], column=o["column"], folder=_folder_of(table))]
        pictures = frame[o["column"]].tolist()
        found = adapter.image_diagnosis(pictures, labels, encoders=encoders, column=o["column"], **facts)
    elif o["kind"] == "dna":
        found = adapter.dna(frame[o["column"]].tolist(), labels, column=o["column"], **facts)
    else:
        kept = _numeric(frame.drop(columns=[c for c in (o["part"], o["group"]) if c]))
        kept[o["label"]] = labels
        found = adapter.disease_from_table(kept, o["label"], **facts)

    # The log score knows probabilities from mere orders, so that settings are chosen by it.
    problem = replace(found[0], metrics={"log score": adapter.log_score, **found[0].metrics})
    _learn(problem, "image", o, calibrate=True, folds=5 if o["kind"] == "table" else None)


@click.command()
@click.argument("model", type=_PATH)
@click.argument("table", callback=_source)
@click.option("--out", required=True, type=_PATH, help="CSV or Parquet file: row, label, rank, score.")
@click.option("--k", type=click.IntRange(1), default=1, show_default=True, help="Labels per row.")
@config_option
def label(model: Path, table: str | Path, out: Path, k: int) -> None:
    """Write the likeliest labels of every row of TABLE, which has the columns that the model was made from.

    Relative paths of pictures start at the folder of TABLE, which may also be a folder of pictures itself.

    \b
    Example:
      recotransfer label model new.csv --out labels.csv
    """  # noqa: D301
    import pandas as pd

    from recotransfer.data import IdMap, Items
    from recotransfer.io.artifacts import atomic_file
    from recotransfer.io.tables import read_table
    from recotransfer.task import TransferTask

    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {out}: end the name in .csv or .parquet")

    task = TransferTask.load(model)
    if _is_folder(table):
        files = [path for path in sorted(table.iterdir()) if path.is_file()]
        frame = pd.DataFrame({_column_of(task): [str(path.absolute()) for path in files]})
        ids = IdMap([path.name for path in files])
    else:
        frame = read_table(table)
        for column in _columns_of_pictures(task):
            if column not in frame.columns:
                raise InputError(f"{table} has no column {column!r} of pictures; it has {list(frame.columns)}")

            if (start := _folder_of(table)) is not None:
                frame[column] = [_found_from(start, cell) for cell in frame[column]]

        if any(encoder.modality == "attributes" for encoder in task.encoders_):
            frame = _numeric(frame)

        ids = IdMap(range(1, len(frame) + 1))

    found = task.label(Items(ids, frame), k).to_frame("row", "label")
    with atomic_file(out) as file:
        if out.suffix == ".csv":
            file.write(found.to_csv(index=False).encode())
        else:
            found.to_parquet(file, index=False)

    unread = len(ids) - found["row"].nunique()
    click.echo(f"{len(ids):,} rows, {unread:,} without readable content", err=True)
    if task.notice:
        click.echo(task.notice, err=True)

    click.echo(out)


def _frame(table: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    from recotransfer.io.tables import read_table

    frame = read_table(table)
    if lost := [c for c in columns if c not in frame.columns]:
        raise InputError(f"{table} has no column {lost[0]!r}; it has {list(frame.columns)}")

    return frame


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns of numbers, which come as text from a CSV file, as numbers."""
    from recotransfer.io.parsing import parse_numbers

    parsed = {name: parse_numbers(frame[name]) for name in frame.columns}
    return frame.assign(**{name: numbers for name, (numbers, wrong) in parsed.items() if not wrong.any()})


def _pictures(table: str | Path, o: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    from recotransfer.adapters import vision as adapter

    if not _is_folder(table):
        return _frame(table, [o["column"], o["label"]])

    files, labels = adapter.folder(table)
    return pd.DataFrame({o["column"]: [str(file.absolute()) for file in files], o["label"]: labels})


def _is_folder(table: str | Path) -> TypeGuard[Path]:
    return isinstance(table, Path) and table.is_dir()


def _folder_of(table: str | Path) -> Path | None:
    """Where relative paths of pictures start."""
    return table.absolute().parent if isinstance(table, Path) and not table.is_dir() else None


def _found_from(folder: Path, cell: Any) -> Any:
    """A cell of pictures whose relative path, if it has one, starts at this folder."""
    from recotransfer.encoders.base import is_missing

    if isinstance(cell, Mapping):  # Hugging Face data sets hold {"bytes": ..., "path": ...}
        return {**cell, "path": _found_from(folder, cell.get("path"))}

    return cell if is_missing(cell) or not isinstance(cell, (str, Path)) else str(folder / cell)


def _content(frame: pd.DataFrame, o: Mapping[str, Any]) -> pd.DataFrame:
    """The columns that may be read: labels, parts and groups would tell the answer."""
    return frame.drop(columns=[c for c in (o["label"], o["part"], o["group"]) if c in frame.columns])


def _labels(frame: pd.DataFrame, o: Mapping[str, Any]) -> list[Any]:
    return [
        None if missing else label for label, missing in zip(frame[o["label"]], frame[o["label"]].isna(), strict=True)
    ]


def _parts(frame: pd.DataFrame, o: Mapping[str, Any]) -> Any:
    """Train, valid or test of each row."""
    from recotransfer.experiments import dealt

    for flag in ("part", "group"):
        if o[flag] is not None and o[flag] not in frame.columns:
            raise InputError(f"--{flag} {o[flag]}: there is no such column; there are {list(frame.columns)}")

    if o["part"] is not None:
        return frame[o["part"]].to_numpy(object)

    return dealt(_labels(frame, o), groups=_groups(frame, o), seed=o["seed"])


def _groups(frame: pd.DataFrame, o: Mapping[str, Any]) -> list[Any] | None:
    return None if o["group"] is None else frame[o["group"]].tolist()


def _learn(problem: Problem, modality: str, o: Mapping[str, Any], **choice: Any) -> None:
    """Fit the variants on a problem, say how they did, save the one that validation prefers."""
    from recotransfer import experiments
    from recotransfer.io.artifacts import check_replaceable, write_json
    from recotransfer.recommenders import Probe
    from recotransfer.task import TransferTask
    from recotransfer.transfer import FineTune

    check_replaceable(o["out"])
    work = o["out"].with_name(o["out"].name + ".tuning")
    probe = Probe(seed=o["seed"])
    variants = {"frozen encoder": TransferTask(probe, cache=o["cache"])}
    if o["tune"]:
        tuner = FineTune(folder=work, objective="labels", epochs=o["epochs"], seed=o["seed"])
        variants["tuned encoder"] = TransferTask(probe, tuners={modality: tuner}, cache=o["cache"])

    outcomes = [experiments.run(problem, task, name=name, **choice) for name, task in variants.items()]
    best = max(outcomes, key=lambda outcome: outcome.valid)
    table = experiments.table(outcomes, problem.metrics, ablation="frozen encoder")
    click.echo(table.to_csv(index=False, float_format="%.4f"), nl=False)
    best.task.notice = o.get("notice")
    best.task.save(o["out"])
    shutil.rmtree(work, ignore_errors=True)  # the saved model has its own copy
    if o["report"] is not None:
        write_json(o["report"], _told(problem, outcomes, best, json.loads(table.to_json(orient="records"))))

    saved = f"saved the {best.name}, which validation preferred" if len(outcomes) > 1 else "saved"
    unread = int(best.predictions.unanswered.sum())
    wrong = f", {unread:,} of them without readable content, which count as wrong" if unread else ""
    click.echo(f"{len(best.predictions.queries):,} in the test{wrong}; {saved}", err=True)
    if best.task.notice:
        click.echo(best.task.notice, err=True)

    click.echo(o["out"])


def _told(
    problem: Problem, outcomes: Sequence[Outcome], best: Outcome, variants: list[dict[str, Any]]
) -> dict[str, Any]:
    from recotransfer.experiments.benchmark.processes import environment

    reports = {outcome.name: dict(outcome.reports) for outcome in outcomes if outcome.reports}
    notice = {"notice": best.task.notice} if best.task.notice else {}

    return notice | {
        "environment": environment(),
        "problem": problem.name,
        "split": problem.split.describe(),
        "saved": best.name,
        "settings": dict(best.settings),
        "variants": variants,
        "training": reports,
    }


def _columns_of_pictures(task: TransferTask) -> list[str]:
    columns = [encoder.column for encoder in task.encoders_ if encoder.modality == "image"]
    return list(dict.fromkeys(name for c in columns for name in ([c] if isinstance(c, str) else c)))


def _column_of(task: TransferTask) -> str:
    """The one column that the model's pictures are read from."""
    columns = _columns_of_pictures(task)
    if len(columns) != 1:
        raise InputError("the model reads no pictures, so a folder means nothing to it; give a table")

    return columns[0]
