"""Rows of `adapters.py`: diagnosis from X-rays and tables, and promoters in DNA. Not for clinical use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import medical
from recotransfer.adapters.medical import NOTICE
from recotransfer.data import Embeddings, IdMap
from recotransfer.encoders import ImageGrid, KmerSequence, TabularAttributes
from recotransfer.transfer import Coral, pseudo_labels

NETWORK = "encoders/mobilenet_v2_imagenet"
ACCURACY = "accuracy at the validation's threshold"
SMALL = [{"reg": reg} for reg in (10.0, 30.0, 100.0, 300.0)]
FOLDS = [{"reg": reg} for reg in (10.0, 100.0, 1000.0)]


def given(vectors: NDArray[Any], source: str) -> list[Embeddings]:
    """These vectors as the embeddings of items 0, 1, ..."""
    return [Embeddings(IdMap(np.arange(len(vectors))), np.asarray(vectors, np.float32), source)]


def folds_of(
    variants: dict[str, Callable[[int], experiments.Outcome]], folds: list[experiments.Problem]
) -> tuple[list[experiments.Outcome], dict[str, experiments.Metric]]:
    """One outcome per variant that merges its folds, and metrics whose AUC is the mean over folds."""
    fold_of = {
        unit: at for at, problem in enumerate(folds) for unit in problem.split.test.items.take(problem.split.test.item)
    }
    metrics = {**folds[0].metrics, "AUC": mean_of_folds(experiments.area_under_curve, fold_of)}
    return [
        experiments.combine_outcomes([run(fold) for fold in range(len(folds))], metrics) for run in variants.values()
    ], metrics


def mean_of_folds(metric: experiments.Metric, fold_of: dict[Any, int]) -> experiments.Metric:
    """The metric that averages another over folds; scores of different folds are not comparable."""

    def mean(a: experiments.Predictions) -> float:
        fold = np.array([fold_of[unit] for unit in a.queries.tolist()])
        return float(np.mean([metric(a.take(np.flatnonzero(fold == at))) for at in np.unique(fold)]))

    return mean


# -- chest X-rays ------------------------------------------------------------------------------------------------------


def pneumonia(data: Path, work: Path) -> dict[str, Any]:
    """Pneumonia in children's chest X-rays, 28 pixels wide, split as in the file (training part: an altered copy)."""
    from adapters import result_row

    with np.load(data / "medical/pneumoniamnist.npz", allow_pickle=False) as file:
        names = {"train": "train", "val": "valid", "test": "test"}
        images = np.concatenate([file[f"{name}_images"] for name in names])
        labels = np.concatenate([file[f"{name}_labels"].ravel() for name in names])
        part = np.concatenate([np.full(len(file[f"{name}_labels"]), use, object) for name, use in names.items()])
    part[_repeated(images, part)] = ""
    network = data / NETWORK

    def problem(encoders: Sequence[Any] = (), embeddings: Any = None) -> experiments.Problem:
        diagnoses = np.where(labels == 1, "pneumonia", "normal").tolist()
        (one,) = medical.image_diagnosis(images, diagnoses, positive="pneumonia", encoders=encoders, part=part)
        return replace(one, embeddings=embeddings)

    pixels = given(images.reshape(len(images), -1) / 255, "pixels")
    variants: list[tuple[str, Any, Any]] = [
        ("pixels", [], pixels),
        ("last layer, whole picture", [ImageGrid(model=network, cells=1)], None),
        ("middle layer, 4 x 4 cells", [ImageGrid(model=network, layer=9)], None),
    ]
    outcomes, metrics = [], problem().metrics
    for name, encoders, embeddings in variants:
        task = TransferTask(Probe(), cache=work, progress=False)
        # No refit: the threshold chosen on validation belongs to the model that predicts the test.
        outcome = experiments.run(problem(encoders, embeddings), task, name=name, calibrate=True, refit=False)
        assert outcome.validation is not None  # the file has a validation part
        above = medical.accuracy_at(medical.threshold(outcome.validation, "pneumonia"), "pneumonia")
        outcomes.append(experiments.combine_outcomes([outcome], {**metrics, ACCURACY: above}))
    best = max(outcomes, key=lambda o: o.valid)
    reached = best.metrics["AUC"].value >= 0.97 and best.metrics[ACCURACY].value >= 0.9
    return result_row(
        outcomes, metrics, "pixels", protocol="parts of the file", goal="AUC .97, accuracy .90",
        reached=bool(reached), best=best.name,
        note=f"validation chose the variant; {int((part == '').sum())} training pictures are in another part too and "
        f"left out; the file names no patients, so intervals draw pictures. {NOTICE}",
    )  # fmt: skip


def _repeated(images: NDArray[np.uint8], part: NDArray[Any]) -> NDArray[np.bool_]:
    """Training pictures that occur in another part too."""
    keys = pd.Series([image.tobytes() for image in images])
    return np.asarray(keys.isin(set(keys[part != "train"])) & (part == "train"))


# -- heart disease -----------------------------------------------------------------------------------------------------


def heart(data: Path, work: Path) -> dict[str, Any]:
    """Heart disease (Cleveland) from thirteen findings of 303 patients."""
    from adapters import result_row

    frame = pd.read_csv(data / "medical/heart_cleveland.csv.gz")
    frame["num"] = np.where(frame["num"] > 0, "disease", "none")
    found = medical.disease_from_table(frame, "num", positive="disease")
    columns = frame.drop(columns="num")
    numbers = columns.fillna(columns.median())
    raw = given((numbers - numbers.mean()) / numbers.std(), "numbers")

    def variant(name: str, **changes: Any) -> Callable[[int], experiments.Outcome]:
        def run(fold: int) -> experiments.Outcome:
            problem, task = replace(found[fold], **changes), TransferTask(Probe(), progress=False)
            return experiments.run(problem, task, name=name, settings=SMALL, folds=5, calibrate=True, draws=1)

        return run

    variants = {
        "numbers as they are": variant("numbers as they are", embeddings=raw),
        "hashed bins": variant("hashed bins", encoders=[TabularAttributes()]),
        "standard table": variant("standard table"),
    }
    outcomes, metrics = folds_of(variants, found)
    return result_row(
        outcomes, metrics, "numbers as they are",
        protocol="5 folds, stratified, mean of their AUC; each chooses settings and temperature on 5 folds of the rest",
        goal="AUC .92, with calibration", reached=bool(outcomes[-1].metrics["AUC"].value >= 0.92),
        note=NOTICE,
    )  # fmt: skip


# -- promoters ---------------------------------------------------------------------------------------------------------


def promoters(organism: str) -> Callable[[Path, Path], dict[str, Any]]:
    """The function that makes the row of one organism."""

    def row(data: Path, work: Path) -> dict[str, Any]:
        from adapters import result_row

        sequences, labels = _sequences(data, organism)
        plain = KmerSequence(placed=(), dim=4096)
        families = medical.overlapping(sequences)

        def variants(
            folds: list[experiments.Problem],
        ) -> tuple[list[experiments.Outcome], dict[str, experiments.Metric]]:
            def variant(name: str, encoder: KmerSequence) -> Callable[[int], experiments.Outcome]:
                def run(fold: int) -> experiments.Outcome:
                    task = TransferTask(Probe(), cache=work, progress=False)
                    return experiments.run(
                        replace(folds[fold], encoders=[encoder]), task, name=name, settings=FOLDS, draws=1
                    )

                return run

            both = {"4-6-mers": plain, "4-6-mers and places": KmerSequence()}
            return folds_of({name: variant(name, encoder) for name, encoder in both.items()}, folds)

        apart, metrics = variants(medical.dna(sequences, labels, positive="promoter", families=families))
        torn, _ = variants(medical.dna(sequences, labels, positive="promoter"))
        return result_row(
            apart, metrics, "4-6-mers",
            protocol="5 folds, stratified, mean of their AUC; sequences that share 25 letters stay in one fold",
            goal="AUC .98", reached=bool(apart[-1].metrics["AUC"].value >= 0.98),
            families=len(np.unique(families)), sequences=len(sequences),
            with_overlapping_sequences_torn_apart={o.name: round(o.metrics["AUC"].value, 4) for o in torn},
            organism=organism, note=NOTICE,
        )  # fmt: skip

    return row


def promoters_across(data: Path, work: Path) -> dict[str, Any]:
    """Promoters of Bacillus, learned from those of E. coli only; the labels of Bacillus serve for testing alone."""
    from adapters import result_row

    here, there = _sequences(data, "ecoli_sigma70"), _sequences(data, "bacillus")
    sequences, labels = [*here[0], *there[0]], [*here[1], *there[1]]
    part = np.repeat(["train", "test"], [len(here[0]), len(there[0])])
    families = medical.overlapping(sequences)
    common = np.isin(families, families[part == "test"]) & (part == "train")
    part = np.where(common, "", part)
    (problem,) = medical.dna(sequences, labels, positive="promoter", part=part, families=families)
    unlabelled = IdMap(np.flatnonzero(part == "test"))
    short = KmerSequence(dim=1024)  # Coral needs fewer dimensions than the organism has sequences: 1,373

    def run(name: str, encoder: KmerSequence, transfers: Sequence[Any] = (), **changes: Any) -> experiments.Outcome:
        changed = replace(problem, encoders=[encoder], unlabelled=unlabelled, **changes)
        task = TransferTask(Probe(), transfers=transfers, cache=work, progress=False)
        return experiments.run(changed, task, name=name, settings=FOLDS, folds=3)

    places = run("4-6-mers and places", KmerSequence())
    sure = pseudo_labels(places.task.label(problem.items.take(np.flatnonzero(part == "test")), 2), threshold=0.95)
    taught = np.full(len(there[0]), None, dtype=object)
    taught[sure.items.take(sure.item).astype(int) - len(here[0])] = sure.users.take(sure.user)
    # Pseudo-labelled sequences are added as copies: the originals are still to be predicted.
    more = np.where(pd.isna(taught), "", "train")
    (wide,) = medical.dna(
        [*sequences, *there[0]], [*labels, *taught], positive="promoter", part=np.concatenate([part, more])
    )
    own = {"items": wide.items, "split": wide.split, "groups": np.concatenate([families, families[-len(there[0]) :]])}
    outcomes = [
        run("4-6-mers", KmerSequence(placed=(), dim=4096)),
        places,
        run("places, 1,024 wide", short),
        run("places, 1,024 wide, Coral", short, [Coral()]),
        run("places, own sure predictions as labels", KmerSequence(), **own),
    ]
    return result_row(
        outcomes, problem.metrics, "4-6-mers",
        protocol="train on E. coli, whose folds choose settings; test on Bacillus, whose sequences may be looked at "
        "unlabelled by Coral and by the last variant", goal=None, reached=None, labels_from_predictions=len(sure),
        note=NOTICE,
    )  # fmt: skip


def _sequences(data: Path, organism: str) -> tuple[list[str], list[str]]:
    table = pd.read_csv(data / "genomics/promoters.csv.gz")
    table = table[table["organism"] == organism]
    return table["sequence"].tolist(), np.where(table["promoter"] == 1, "promoter", "other").tolist()


ROWS = {
    "pneumonia": (pneumonia, ["medical/pneumoniamnist.npz", NETWORK]),
    "heart": (heart, ["medical/heart_cleveland.csv.gz"]),
    "promoters_ecoli": (promoters("ecoli_sigma70"), ["genomics/promoters.csv.gz"]),
    "promoters_bacillus": (promoters("bacillus"), ["genomics/promoters.csv.gz"]),
    "promoters_arabidopsis": (promoters("arabidopsis_tata"), ["genomics/promoters.csv.gz"]),
    "promoters_across": (promoters_across, ["genomics/promoters.csv.gz"]),
}
