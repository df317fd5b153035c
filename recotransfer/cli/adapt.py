"""The commands `adapt`, which fits a classifier of pictures, texts or records, and `label`, which applies it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from recotransfer.cli.options import config_option, threads_option
from recotransfer.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from recotransfer.encoders import Encoder
    from recotransfer.experiments import Outcome, Problem
    from recotransfer.task import TransferTask


_PATH = click.Path(path_type=Path)
_STACKING = ({"reg": 1.0}, {"reg": 0.1}, {"reg": 0.01})  # its members have their chosen settings already


def _source(context: click.Context, parameter: click.Parameter, value: str) -> str | Path:
    """A database URL unchanged, anything else as a path."""
    return value if "://" in value else Path(value)


def _learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all kinds of content share."""
    for option in (
        click.option("--report", type=_PATH, help="JSON file for the results of all variants."),
        click.option("--cache", type=_PATH, help="Folder that keeps encoded content between runs."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split and of training."),
        click.option("--epochs", type=click.IntRange(1), default=3, show_default=True,
                     help="With --tune: maximum number of epochs."),
        click.option("--tune", is_flag=True,
                     help="Also fine-tune the encoder; the variant that is better on validation is saved."),
        click.option("--group", help="Column of groups to keep whole in the split: patients, authors, products."),
        click.option("--part", help="Column with train, valid or test; by default a random fifth is the test."),
        click.option("--label", default="label", show_default=True, help="Column of labels; empty cells: unlabelled."),
        click.option("--out", required=True, type=_PATH, help="Folder for the model."),
    ):  # fmt: skip
        command = option(command)

    return command


@click.group()
def adapt() -> None:
    """Learn to label pictures, texts or records with a pretrained encoder; apply the model with `label`.

    Labels are treated as users who have the items with that label, so that a recommender classifies.
    """


@adapt.command()
@click.argument("table", callback=_source)
@click.option("--encoder", required=True, help="transformers vision model: a folder or a name on the hub.")
@click.option("--column", default="image", show_default=True, help="Column of pictures, as paths or bytes.")
@_learning_options
@threads_option
@config_option
def vision(table: str | Path, **o: Any) -> None:
    """Classify pictures. TABLE is CSV, Parquet, or a folder with one subfolder of pictures per label.

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
    "--column", "columns", multiple=True, default=("text",), show_default=True,
    help="Column of text; several are concatenated.",
)  # fmt: skip
@click.option("--encoder", help="sentence-transformers model: a folder or hub name; by default all-MiniLM-L6-v2.")
@_learning_options
@threads_option
@config_option
def nlp(table: str | Path, **o: Any) -> None:
    """Classify texts. TABLE is CSV, Parquet or a database URL.

    Compares the encoder with the words alone (TF-IDF), and with both stacked, and saves what is best on validation.

    \b
    Example:
      recotransfer adapt nlp reviews.csv --column title --column review --label stars --out model --tune
    """  # noqa: D301
    from recotransfer.adapters import nlp as adapter
    from recotransfer.encoders import SentenceText

    frame = _frame(table, [*o["columns"], o["label"]])
    encoders = [SentenceText(model=o["encoder"], column=list(o["columns"]))]
    texts, part, groups = frame[list(o["columns"])], _parts(frame, o), _groups(frame, o)
    problem = adapter.classification(texts, _labels(frame, o), part, encoders=encoders, groups=groups)
    _learn(problem, "text", o, words=adapter.words_of(problem), calibrate=len(problem.split.valid) > 0)


@adapt.command()
@click.argument("table", callback=_source)
@click.option("--of", "kind", type=click.Choice(["image", "table", "dna"]), required=True, help="Kind of the records.")
@click.option("--positive", required=True, help="The positive label, for sensitivity and specificity.")
@click.option("--encoder", help="Pictures: a transformers vision model, a folder or a name on the hub.")
@click.option("--column", help="Column of pictures or sequences; by default image or sequence.")
@_learning_options
@threads_option
@config_option
def medical(table: str | Path, **o: Any) -> None:
    """Predict diagnoses from pictures, tables or DNA, with calibrated probabilities. Not for clinical use.

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
        raise InputError(f"--tune needs a pretrained encoder, and --of {o['kind']} has none; leave it out")

    labels = [None if label is None else str(label) for label in _labels(frame, o)]
    if o["positive"] not in labels:
        raise InputError(f"no row has the label {o['positive']!r}; labels are {sorted({v for v in labels if v})[:5]}")

    options = {"positive": o["positive"], "part": _parts(frame, o)}
    options["families" if o["kind"] == "dna" else "patients"] = _groups(frame, o)
    if o["kind"] == "image":
        if o["encoder"] is None:
            raise InputError("--of image needs a pretrained model; give --encoder")

        encoders = [PretrainedImage(model=o["encoder"], column=o["column"], folder=_folder_of(table))]
        pictures = frame[o["column"]].tolist()
        adapted = adapter.image_diagnosis(pictures, labels, encoders=encoders, column=o["column"], **options)
    elif o["kind"] == "dna":
        adapted = adapter.dna(frame[o["column"]].tolist(), labels, column=o["column"], **options)
    else:
        attributes = _numeric(frame.drop(columns=[c for c in (o["part"], o["group"]) if c]))
        attributes[o["label"]] = labels
        adapted = adapter.disease_from_table(attributes, o["label"], **options)

    # Settings are chosen by the log score, which rewards good probabilities and not just a good ranking.
    problem = replace(adapted[0], metrics={"log score": adapter.log_score, **adapted[0].metrics})
    _learn(problem, "image", o, calibrate=True, folds=5 if o["kind"] == "table" else None)


@click.command()
@click.argument("model", type=_PATH)
@click.argument("table", callback=_source)
@click.option("--out", required=True, type=_PATH, help="CSV or Parquet file: row, label, rank, score.")
@click.option("--k", type=click.IntRange(1), default=1, show_default=True, help="Labels per row.")
@threads_option
@config_option
def label(model: Path, table: str | Path, out: Path, k: int) -> None:
    """Write the likeliest labels of every row of TABLE, which needs the columns that the model was fitted on.

    TABLE may also be a folder of pictures. Relative paths of pictures are taken from the folder of TABLE.

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
        raise InputError(f"--out {out} must end in .csv or .parquet; rename it")

    task = TransferTask.load(model)
    if _is_folder(table):
        files = [path for path in sorted(table.iterdir()) if path.is_file()]
        frame = pd.DataFrame({_picture_column(task): [str(path.absolute()) for path in files]})
        ids = IdMap([path.name for path in files])
    else:
        frame = read_table(table)
        for column in _picture_columns(task):
            if column not in frame.columns:
                raise InputError(f"{table} has no column {column!r} of pictures; it has {list(frame.columns)}")

            if (start := _folder_of(table)) is not None:
                frame[column] = [_relative_to(start, cell) for cell in frame[column]]

        if any(encoder.modality == "attributes" for encoder in task.encoders_):
            frame = _numeric(frame)

        ids = IdMap(range(1, len(frame) + 1))

    labelled = task.label(Items(ids, frame), k).to_frame("row", "label")
    with atomic_file(out) as file:
        if out.suffix == ".csv":
            file.write(labelled.to_csv(index=False).encode())
        else:
            labelled.to_parquet(file, index=False)

    unread = len(ids) - labelled["row"].nunique()
    click.echo(f"{len(ids):,} rows, {unread:,} without readable content", err=True)
    if task.notice:
        click.echo(task.notice, err=True)

    click.echo(out)


def _frame(table: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """The table, which must have these columns."""
    from recotransfer.io.tables import read_table

    frame = read_table(table)
    if missing := [c for c in columns if c not in frame.columns]:
        raise InputError(f"{table} has no column {missing[0]!r}; it has {list(frame.columns)}")

    return frame


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns parsed as numbers if all their cells are; a CSV file holds only text."""
    from recotransfer.io.parsing import parse_numbers

    parsed = {name: parse_numbers(frame[name]) for name in frame.columns}
    return frame.assign(**{name: numbers for name, (numbers, wrong) in parsed.items() if not wrong.any()})


def _pictures(table: str | Path, o: Mapping[str, Any]) -> pd.DataFrame:
    """The table, or the pictures of a folder with the names of their subfolders as labels."""
    import pandas as pd

    from recotransfer.adapters import vision as adapter

    if not _is_folder(table):
        return _frame(table, [o["column"], o["label"]])

    files, labels = adapter.folder(table)
    return pd.DataFrame({o["column"]: [str(file.absolute()) for file in files], o["label"]: labels})


def _is_folder(table: str | Path) -> TypeGuard[Path]:
    return isinstance(table, Path) and table.is_dir()


def _folder_of(table: str | Path) -> Path | None:
    """The folder that relative paths of pictures are taken from; None for a database or a folder of pictures."""
    return table.absolute().parent if isinstance(table, Path) and not table.is_dir() else None


def _relative_to(folder: Path, cell: object) -> Any:
    """The picture cell with its relative path, if it has one, resolved against this folder."""
    from recotransfer.encoders.base import is_missing

    if isinstance(cell, Mapping):  # Hugging Face data sets have {"bytes": ..., "path": ...}
        return {**cell, "path": _relative_to(folder, cell.get("path"))}

    return cell if is_missing(cell) or not isinstance(cell, (str, Path)) else str(folder / cell)


def _content(frame: pd.DataFrame, o: Mapping[str, Any]) -> pd.DataFrame:
    """The columns that an encoder may read; labels, parts and groups would leak the answer."""
    return frame.drop(columns=[c for c in (o["label"], o["part"], o["group"]) if c in frame.columns])


def _labels(frame: pd.DataFrame, o: Mapping[str, Any]) -> list[Any]:
    """Label of each row; None if missing."""
    return [
        None if missing else label for label, missing in zip(frame[o["label"]], frame[o["label"]].isna(), strict=True)
    ]


def _parts(frame: pd.DataFrame, o: Mapping[str, Any]) -> Any:
    """(rows,) "train", "valid" or "test", from --part or drawn at random."""
    from recotransfer.experiments import stratified_parts

    for flag in ("part", "group"):
        if o[flag] is not None and o[flag] not in frame.columns:
            raise InputError(f"--{flag} {o[flag]}: there is no such column; choose from {list(frame.columns)}")

    if o["part"] is not None:
        return frame[o["part"]].to_numpy(object)

    return stratified_parts(_labels(frame, o), groups=_groups(frame, o), seed=o["seed"])


def _groups(frame: pd.DataFrame, o: Mapping[str, Any]) -> list[Any] | None:
    """Group of each row; None without --group."""
    return None if o["group"] is None else frame[o["group"]].tolist()


def _learn(
    problem: Problem, modality: str, o: Mapping[str, Any], *, words: Encoder | None = None, **run_options: Any
) -> None:
    """Fit the variants on a problem, print their results, and save the one that is best on validation.

    With an encoder `words`, two of them are the words alone and the words stacked with the frozen encoder. Stacking
    learns from the members' probabilities, so it calibrates itself, and those should be calibrated.
    """
    from recotransfer import experiments
    from recotransfer.io.artifacts import check_replaceable, write_json
    from recotransfer.recommenders import Probe
    from recotransfer.task import TransferTask
    from recotransfer.transfer import FineTune

    check_replaceable(o["out"])
    work = o["out"].with_name(o["out"].name + ".tuning")
    probe = Probe(seed=o["seed"])
    cache = o["cache"]
    if words is not None and cache is None:  # two variants need the same vectors
        cache = work / "vectors"

    variants = {"frozen encoder": TransferTask(probe, cache=cache)}
    if words is not None:
        plain = Probe(standardise=False, seed=o["seed"])
        variants["words only"] = TransferTask(plain, encoders=[words])

    if o["tune"]:
        tuner = FineTune(folder=work, objective="labels", epochs=o["epochs"], seed=o["seed"])
        variants["tuned encoder"] = TransferTask(probe, tuners={modality: tuner}, cache=cache)

    outcomes = [experiments.run(problem, task, name=name, **run_options) for name, task in variants.items()]
    if words is not None:
        task = _stacked(problem, outcomes[:2], words, modality, cache)
        settings = _STACKING if len(problem.split.valid) else None
        outcomes.insert(2, experiments.run(problem, task, name="words and frozen encoder", settings=settings))

    best = max(outcomes, key=lambda outcome: outcome.valid)
    table = experiments.table(outcomes, problem.metrics, ablation="frozen encoder")
    table.insert(1, f"valid {next(iter(problem.metrics))}", [outcome.valid for outcome in outcomes])
    click.echo(table.to_csv(index=False, float_format="%.4f"), nl=False)
    best.task.notice = o.get("notice")
    best.task.save(o["out"])
    shutil.rmtree(work, ignore_errors=True)  # the saved model has its own copy
    if o["report"] is not None:
        write_json(o["report"], _report(problem, outcomes, best, json.loads(table.to_json(orient="records"))))

    reason = "there is no validation part to choose by" if math.isnan(best.valid) else "the best on validation"
    saved = f"saved the {best.name}, {reason}" if len(outcomes) > 1 else "saved"
    unread = int(best.predictions.unanswered.sum())
    wrong = f", {unread:,} of them without readable content, counted as wrong" if unread else ""
    click.echo(f"{len(best.predictions.queries):,} in the test{wrong}; {saved}", err=True)
    if best.task.notice:
        click.echo(best.task.notice, err=True)

    click.echo(o["out"])


def _stacked(
    problem: Problem, outcomes: Sequence[Outcome], words: Encoder, modality: str, cache: Path | None
) -> TransferTask:
    """A task that stacks the probes of the two outcomes, the frozen encoder and the words, at their chosen settings.

    A tuned encoder is left out: it has seen the labels from which the stacking is learned.
    """
    from recotransfer.recommenders import StackedFusion
    from recotransfer.task import TransferTask

    blocks = (modality, words.modality)
    members = [
        outcome.task.recommender.with_settings({"block": block})
        for outcome, block in zip(outcomes, blocks, strict=True)
    ]

    return TransferTask(StackedFusion(members=members), encoders=[*(problem.encoders or ()), words], cache=cache)


def _report(
    problem: Problem, outcomes: Sequence[Outcome], best: Outcome, variants: list[dict[str, Any]]
) -> dict[str, Any]:
    """Results of all variants and the conditions they were measured under, for --report."""
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


def _picture_columns(task: TransferTask) -> list[str]:
    """The columns that the model's image encoders read."""
    columns = [encoder.column for encoder in task.encoders_ if encoder.modality == "image"]
    return list(dict.fromkeys(name for c in columns for name in ([c] if isinstance(c, str) else c)))


def _picture_column(task: TransferTask) -> str:
    """The one column that the model reads pictures from."""
    columns = _picture_columns(task)
    if len(columns) != 1:
        raise InputError("this model does not read a single column of pictures, so it cannot label a folder; "
                         "give a table")  # fmt: skip

    return columns[0]
