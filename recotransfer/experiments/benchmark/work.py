"""The work of one variant in its own process: tune, fit, test and save."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recotransfer.data import Embeddings, Interactions, Items
from recotransfer.diagnostics import Guarded, guard
from recotransfer.encoders import encoder_from_spec
from recotransfer.evaluation import metrics
from recotransfer.evaluation.split import Split
from recotransfer.experiments.benchmark.measure import measure, plain, rankings_of
from recotransfer.experiments.benchmark.variants import Variant, guarded
from recotransfer.experiments.tuning import lists_for, tune
from recotransfer.io.artifacts import atomic_file, read_json, write_json
from recotransfer.recommenders import Recommender
from recotransfer.task import TransferTask
from recotransfer.transfer import Transfer

_FILES = ("users.parquet", "test-lists.parquet")  # of a variant: metrics per user, and the lists


@dataclass(frozen=True)
class Work:
    """Everything that the process of a variant needs.

    Attributes:
        out: folder of the benchmark.
        ks: list lengths to report.
        trials: models to fit when tuning.
        refit: whether to refit with the validation events before the test.
        seed: random seed.
        items: the catalogue.
        split: the protocol.
        embeddings: vectors of the items, one `Embeddings` per encoder.
        specs: descriptions of the encoders, as `encoder_spec` gives them.
        weights: modality -> initial weight.
        transfers: maps of the fused vectors.
    """

    out: Path
    ks: tuple[int, ...]
    trials: int
    refit: bool
    seed: int
    items: Items
    split: Split
    embeddings: Sequence[Embeddings]
    specs: Sequence[Mapping[str, Any]]
    weights: Mapping[str, float] | None
    transfers: Sequence[Transfer] = ()

    def folder(self, variant: Variant) -> Path:
        """Folder of a variant's model, trials and results."""
        return self.out / "variants" / variant.folder

    def task(self, recommender: Recommender, content: bool, weights: Mapping[str, float] | None) -> TransferTask:
        """A task that is not fitted, with the encoders and transfers if the variant gets content."""
        if not content:
            return TransferTask(recommender, encoders=[], progress=False)

        encoders = [encoder_from_spec(spec) for spec in self.specs]
        return TransferTask(recommender, encoders=encoders, weights=weights, transfers=self.transfers, progress=False)

    def embeddings_for(self, content: bool) -> Sequence[Embeddings]:
        """The embeddings if the variant gets content, otherwise an empty list."""
        return self.embeddings if content else []


def run_variant(work: Work, variant: Variant, ablation: Variant | None = None) -> None:
    """Tune, fit and test one variant. Everything goes into its folder, `variant.json` last.

    If its ablation is given, run the guard on the two (both must be done) and test the guarded form.
    """
    running = variant if ablation is None else guarded(variant)
    folder = work.folder(running)
    if done(folder):
        return

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traceback.txt").unlink(missing_ok=True)
    try:
        facts = (
            _measured_variant(work, variant, folder)
            if ablation is None
            else _guarded_variant(work, variant, ablation, folder)
        )
    except Exception as cause:  # the other variants go on; the report and traceback.txt show the error
        with atomic_file(folder / "traceback.txt") as file:
            file.write(traceback.format_exc().encode())
        write_failed(folder, running, f"{type(cause).__name__}: {cause}")
    else:
        write_json(folder / "variant.json", plain({**_facts(running), **facts}))


def done(folder: Path) -> bool:
    """Whether the folder holds a variant's results."""
    path = folder / "variant.json"
    return path.exists() and read_json(path)["failed"] is None


def write_failed(folder: Path, variant: Variant, why: str) -> None:
    """Record in the variant's folder why it failed."""
    write_json(folder / "variant.json", {**_facts(variant), "failed": " ".join(why.split())})


def exit_reason(status: int) -> str:
    """Why a variant failed whose process ended with this exit status and wrote no error."""
    if status == -signal.SIGKILL:
        return "its process was killed, probably for lack of memory; use a machine with more memory, or fewer workers"

    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"its process {how} before it was done; see its output on stderr"


def _facts(variant: Variant) -> dict[str, Any]:
    """The description of a variant in `variant.json`."""
    return {
        "name": variant.name,
        "class": type(variant.recommender).__name__,
        "start": plain(variant.recommender.params()),
        "content": variant.content,
        "ablation_of": variant.ablation_of,
        "tuned": variant.tuned,
    }


def _measured_variant(work: Work, variant: Variant, folder: Path) -> dict[str, Any]:
    """Tune, fit and test a variant; its results for `variant.json`."""
    split = work.split
    params, weights, trials, seconds = variant.recommender.params(), work.weights, [], {}
    start = time.perf_counter()
    if variant.tuned:
        journal = folder / "trials.json"
        resumed = journal.exists()
        tuned = tune(
            work.task(variant.recommender, variant.content, weights),
            work.items,
            split.train,
            valid=split.valid,
            histories=split.valid_history,
            allow=None if split.valid_items is None else split.valid_items.ids,
            trials=work.trials,
            k=work.ks[0],
            seed=work.seed,
            embeddings=work.embeddings_for(variant.content),
            journal=journal,
        )
        params, weights = dict(tuned.params), tuned.weights
        trials = [_trial(number, row) for number, row in enumerate(tuned.trials.to_dict("records"))]
        seconds["tune"] = None if resumed else time.perf_counter() - start  # the time of earlier trials is not known

    task, seconds["fit"] = _fitted(work, variant, params, weights, split.train)
    task.save(folder / ("model-train" if work.refit else "model"))
    valid = _valid_score(work, task.recommender)
    curve = getattr(task.recommender, "curve_", None)
    if work.refit:
        task, seconds["fit"] = _fitted(work, variant, params, weights, split.known_before_test())
        task.save(folder / "model")

    facts = _test(work, task, folder)

    return {
        "settings": params,
        "weights": None if weights is None or not variant.content else dict(weights),
        "trials": trials,
        "curve": curve,
        "valid": valid,
        **facts,
        "seconds": {**seconds, **facts["seconds"]},
    }


def _trial(number: int, row: Mapping[Any, Any]) -> dict[str, Any]:
    settings = {str(name): value for name, value in row.items() if name not in ("ndcg", "recall")}
    return {"number": number, "value": row["ndcg"], "recall": row["recall"], "settings": settings}


def _fitted(
    work: Work, variant: Variant, params: Mapping[str, Any], weights: Mapping[str, float] | None, events: Interactions
) -> tuple[TransferTask, float]:
    """The fitted task and the seconds that the fit took."""
    task = work.task(type(variant.recommender)(**params), variant.content, weights)
    start = time.perf_counter()
    task.fit(work.items, events, embeddings=work.embeddings_for(variant.content))
    return task, time.perf_counter() - start


def _valid_score(work: Work, model: Recommender) -> float:
    """Mean NDCG at the first list length on validation."""
    split, k = work.split, work.ks[0]
    allow = None if split.valid_items is None else split.valid_items.ids
    lists = lists_for(model, split.valid, k, histories=split.valid_history, allow=allow)
    return float(metrics.ndcg(metrics.hits(lists, split.valid), k).mean())


def _test(work: Work, task: TransferTask, folder: Path) -> dict[str, Any]:
    """Test results over all rankings. Metrics per user go to `users.parquet`, the lists to `test-lists.parquet`."""
    split, model = work.split, task.recommender
    lists, seconds = {}, {}

    for name, ranking in rankings_of(split).items():
        allow = None if ranking.allow is None else ranking.allow.ids
        start = time.perf_counter()
        lists[name] = lists_for(model, ranking.truth, max(work.ks), histories=split.test_history, allow=allow)
        seconds[name] = time.perf_counter() - start

    vectors = work.embeddings[0] if work.embeddings else None
    measured = measure(lists, split, work.ks, items=work.items, vectors=vectors)
    with atomic_file(folder / _FILES[0]) as file:
        measured.per_user.to_parquet(file, index=False)

    with atomic_file(folder / _FILES[1]) as file:
        lists["all"].to_frame().to_parquet(file, index=False)

    return {
        **measured.tables,
        "seconds": {"recommend": seconds["all"]},
        "users_per_second": len(lists["all"]) / seconds["all"],
        "memory_mib": peak_memory_mib(),
        "failed": None,
    }


def _guarded_variant(work: Work, variant: Variant, ablation: Variant, folder: Path) -> dict[str, Any]:
    """Compare a variant with its ablation on validation, then test the guarded form."""
    split = work.split
    folders = [work.folder(each) for each in (variant, ablation)]
    rows = [read_json(each / "variant.json") for each in folders]
    tasks = [TransferTask.load(each / ("model-train" if work.refit else "model")) for each in folders]
    start = time.perf_counter()
    result = guard(
        tasks[0].recommender,
        tasks[1].recommender,
        split.valid,
        histories=split.valid_history,
        allow=split.valid_items,
        k=work.ks[0],
        seed=work.seed,
    )
    seconds = time.perf_counter() - start
    valid, recommender = _valid_score(work, result.recommender), result.recommender
    if work.refit:
        tasks = [TransferTask.load(each / "model") for each in folders]
        recommender = result.refitted(tasks[0].recommender, tasks[1].recommender)

    # If the guard keeps no content, the guarded form is the ablation.
    task, row = (tasks[0], rows[0]) if result.verdict.kept else (tasks[1], rows[1])
    original = _unchanged(result, variant, ablation)
    task.recommender = recommender
    task.save(folder / "model")
    facts = _test(work, task, folder) if original is None else _test_of(rows, original, work, folder)
    inherited = ("content", "settings", "weights", "curve")

    return {
        **{name: row[name] for name in inherited}, "guard_of": variant.name, "trials": [], "valid": valid, **facts,
        "seconds": {**facts["seconds"], "guard": seconds, "fit": row["seconds"]["fit"]},
        "same_as": None if original is None else original.name,
        "guard": {"variant": variant.name, "ablation": ablation.name, **result.verdict.to_dict()},
    }  # fmt: skip


def _unchanged(result: Guarded, variant: Variant, ablation: Variant) -> Variant | None:
    """The variant whose model the guarded form is: the ablation without content, the variant with all of it."""
    if not result.verdict.kept:
        return ablation

    return variant if result.verdict.trust is None or min(result.verdict.trust) == 1 else None


def _test_of(rows: Sequence[Mapping[str, Any]], original: Variant, work: Work, folder: Path) -> dict[str, Any]:
    """The test results of a variant, as those of another with the same model, so that it has one speed and one memory.

    Copies its metrics per user and lists as well.
    """
    for name in _FILES:
        with atomic_file(folder / name) as file:
            file.write((work.folder(original) / name).read_bytes())

    (row,) = (row for row in rows if row["name"] == original.name)
    measured = ("rankings", "popularity", "ages", "histories", "beyond", "users_per_second", "memory_mib", "failed")

    return {
        **{name: row[name] for name in measured if name in row},
        "seconds": {"recommend": row["seconds"]["recommend"]},
    }


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage starts at the memory of the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024

    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
