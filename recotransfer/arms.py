"""The lines of a benchmark: what each arm is, and its work from tuning to test, done in a process of its own."""

from __future__ import annotations

import ast
import copy
import inspect
import re
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recotransfer import metrics
from recotransfer.artifacts import atomic_file, digest, read_json, write_json
from recotransfer.data import Embeddings, Interactions, Items
from recotransfer.encoders import encoder_from_spec
from recotransfer.errors import InputError
from recotransfer.evaluation import measure, plain, questions
from recotransfer.recommenders import Recommender, by_name
from recotransfer.splits import Split
from recotransfer.task import TransferTask
from recotransfer.transfer.base import Transfer
from recotransfer.transfer.guard import guard
from recotransfer.tuning import lists_for, tune

CONTROL, GUARDED = " without content", " guarded"  # what the names of an arm's control and of its guarded form end in
_DENSE_ITEMS = 25_000  # beyond this many, items x items solves give way to their sparse form


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: unique in a benchmark.
        recommender: not fitted; its settings are the first trial, or the only ones.
        content: whether it is given the items' embeddings.
        tuned: whether its settings are chosen on validation; otherwise they are taken as given.
        control_of: the arm whose control this is: the same model without content, with the same number of trials.
    """

    name: str
    recommender: Recommender
    content: bool = True
    tuned: bool = True
    control_of: str | None = None

    @property
    def folder(self) -> str:
        """Name of the arm's folder: its own, with what file systems dislike replaced."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")
        return safe if safe == self.name else f"{safe}-{digest([self.name])[:6]}"


def arms_of(words: Sequence[str], *, items: int = 0, content: bool = True) -> list[Arm]:
    """Arms from words such as "EASE", "mine=my_package.my_module:MyRecommender", "EASE(reg=100)".

    A name alone is tuned; brackets give settings, and those are taken as they are, without tuning. A recommender that
    can do with and without content gets its control arm beside it. With no words: every recommender of the package.

    Args:
        words: see above.
        items: size of the catalogue; great ones get the sparse form of models that hold items x items.
        content: whether there are embeddings; without, recommenders that need them are left out or refused.
    """
    arms: list[Arm] = []
    for word in words or _default_words(items, content):
        arm = _arm_of(word, items)
        needs = arm.recommender.needs_items
        if needs and not content:
            raise InputError(f"{arm.name} ranks by content alone, and there is none; leave it out or give content")
        both = arm.recommender.scores_new_items and not needs
        arm = replace(arm, content=content and (needs or both))
        arms.append(arm)
        if both and content:
            arms.append(replace(arm, name=arm.name + CONTROL, content=False, control_of=arm.name))
    check_names(arms)
    return arms


def check_names(arms: Sequence[Arm]) -> None:
    """Refuse arms whose results would fall into one place, those of the guard counted in."""
    names = [arm.name for arm in arms] + [arm.control_of + GUARDED for arm in arms if arm.control_of is not None]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two arms are called {twice[0]!r}; name one of them otherwise, as in 'other=EASE'")


def _default_words(items: int, content: bool) -> list[str]:
    words = [
        "HybridItems",
        "HybridRanker",
        "SASRec",
        "EASE",
        "ItemKNN",
        "ALS",
        "BPR",
        "RidgeProfiles",
        "ContentProfiles",
        "Popularity",
    ]
    return [word for word in words if content or not by_name(word)().needs_items]


def _arm_of(word: str, items: int) -> Arm:
    marks = [n for n, letter in enumerate(word) if letter == "="]  # the first that stands in no bracket ends the label
    mark = next((n for n in marks if word.count("(", 0, n) == word.count(")", 0, n)), -1)
    label, spec = " ".join(word[: max(mark, 0)].split()), word[mark + 1 :].strip()
    name, bracket, inside = spec.partition("(")
    kind = by_name(name.strip())
    given = _settings_of(spec, inside) if bracket else {}
    known = inspect.signature(kind).parameters
    if lost := [setting for setting in given if setting not in known]:
        raise InputError(f"{spec!r}: {kind.__name__} has no setting {lost[0]!r}; it has {', '.join(known)}")
    if "neighbours" in known and known["neighbours"].default is None and items > _DENSE_ITEMS:
        given.setdefault("neighbours", 200)
    recommender = kind(**given)
    recommender.check_settings()
    return Arm(label or spec, recommender, tuned=not bracket and bool(recommender.search_space))


def _settings_of(spec: str, inside: str) -> dict[str, Any]:
    """The settings of "EASE(reg=100)", of which `inside` is what follows the bracket."""
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
        if len(given) < len(call.keywords):  # one twice, or **
            raise ValueError
    except (SyntaxError, ValueError):
        raise InputError(
            f"{spec!r}: write settings as in EASE(reg=100, history_decay=0.6), each once, text in quotes"
        ) from None
    return given


@dataclass(frozen=True)
class Work:
    """What every arm's process is given."""

    out: Path
    ks: tuple[int, ...]
    trials: int
    refit: bool
    rng: int
    items: Items
    split: Split
    parts: Sequence[Embeddings]
    specs: Sequence[Mapping[str, Any]]
    weights: Mapping[str, float] | None
    transfers: Sequence[Transfer] = ()

    def folder(self, arm: Arm) -> Path:
        """Where an arm's model, trials and figures are."""
        return self.out / "arms" / arm.folder

    def task(self, recommender: Recommender, content: bool, weights: Mapping[str, float] | None) -> TransferTask:
        """A task with the encoders and the transfers, not fitted yet, as far as the arm is given content."""
        if not content:
            return TransferTask(recommender, encoders=[], progress=False)
        encoders = [encoder_from_spec(spec) for spec in self.specs]
        transfers = [copy.copy(transfer) for transfer in self.transfers]
        return TransferTask(recommender, encoders=encoders, weights=weights, transfers=transfers, progress=False)

    def parts_for(self, content: bool) -> Sequence[Embeddings]:
        """The embeddings as far as the arm is given content."""
        return self.parts if content else []


def run_arm(work: Work, arm: Arm, control: Arm | None = None) -> None:
    """Tune, fit, ask and measure one arm; everything goes into its folder, `arm.json` last.

    With its control arm, both of them done, the arm is guarded instead.
    """
    at = arm if control is None else guarded(arm)
    folder = work.folder(at)
    if done(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traceback.txt").unlink(missing_ok=True)
    try:
        facts = _measured_arm(work, arm, folder) if control is None else _guarded_arm(work, arm, control, folder)
    except Exception as cause:  # one arm must not take hours of the others with it; the report and a trace say why
        with atomic_file(folder / "traceback.txt") as file:
            file.write(traceback.format_exc().encode())
        write_failed(folder, at, f"{type(cause).__name__}: {cause}")
    else:
        write_json(folder / "arm.json", plain({**_facts(at), **facts}))


def guarded(arm: Arm) -> Arm:
    """The line of what the guard lets through of an arm."""
    return replace(arm, name=arm.name + GUARDED, tuned=False)


def done(folder: Path) -> bool:
    """Whether an arm's folder holds its figures."""
    path = folder / "arm.json"
    return path.exists() and read_json(path)["failed"] is None


def write_failed(folder: Path, arm: Arm, why: str) -> None:
    """Note in the arm's folder why it has no figures."""
    write_json(folder / "arm.json", {**_facts(arm), "failed": " ".join(why.split())})


def died(status: int) -> str:
    """What is known of an arm whose process ended with this exit status and left nothing."""
    if status == -signal.SIGKILL:
        return (
            "its process was killed, as happens when memory runs out; give it more, or run fewer workers side by side"
        )
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"its process {how} before it was done; stderr says more"


def _facts(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "class": type(arm.recommender).__name__,
        "start": plain(arm.recommender.params()),
        "content": arm.content,
        "control_of": arm.control_of,
        "tuned": arm.tuned,
    }


def _measured_arm(work: Work, arm: Arm, folder: Path) -> dict[str, Any]:
    split = work.split
    params, weights, trials, seconds = arm.recommender.params(), work.weights, [], {}
    start = time.perf_counter()
    if arm.tuned:
        kept = folder / "trials.json"
        resumed = kept.exists()
        tuned = tune(
            work.task(arm.recommender, arm.content, weights),
            work.items,
            split.train,
            valid=split.valid,
            histories=split.valid_history,
            allow=None if split.valid_items is None else split.valid_items.ids,
            trials=work.trials,
            k=work.ks[0],
            rng=work.rng,
            parts=work.parts_for(arm.content),
            journal=kept,
        )
        params, weights = dict(tuned.params), tuned.weights
        trials = [_trial(number, row) for number, row in enumerate(tuned.trials.to_dict("records"))]
        seconds["tune"] = None if resumed else time.perf_counter() - start
    task, seconds["fit"] = _fitted(work, arm, params, weights, split.train)
    task.save(folder / ("model-train" if work.refit else "model"))
    valid = _valid_score(work, task.recommender)
    curve = getattr(task.recommender, "curve_", None)
    if work.refit:
        task, seconds["fit"] = _fitted(work, arm, params, weights, split.known_before_test())
        task.save(folder / "model")
    facts = _asked(work, task, folder)
    return {
        "settings": params,
        "weights": None if weights is None or not arm.content else dict(weights),
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
    work: Work, arm: Arm, params: Mapping[str, Any], weights: Mapping[str, float] | None, events: Interactions
) -> tuple[TransferTask, float]:
    task = work.task(type(arm.recommender)(**params), arm.content, weights)
    start = time.perf_counter()
    task.fit(work.items, events, parts=work.parts_for(arm.content))
    return task, time.perf_counter() - start


def _valid_score(work: Work, model: Recommender) -> float:
    split, k = work.split, work.ks[0]
    allow = None if split.valid_items is None else split.valid_items.ids
    found = lists_for(model, split.valid, k, histories=split.valid_history, allow=allow)
    return float(metrics.ndcg(metrics.hits(found, split.valid), k).mean())


def _asked(work: Work, task: TransferTask, folder: Path) -> dict[str, Any]:
    """The test, once: lists for every question, measured; per-user figures go to `users.parquet`."""
    split, model = work.split, task.recommender
    lists, seconds = {}, {}
    for name, question in questions(split).items():
        allow = None if question.allow is None else question.allow.ids
        start = time.perf_counter()
        lists[name] = lists_for(model, question.truth, max(work.ks), histories=split.test_history, allow=allow)
        seconds[name] = time.perf_counter() - start
    vectors = work.parts[0] if work.parts else None
    measured = measure(lists, split, work.ks, items=work.items, vectors=vectors)
    with atomic_file(folder / "users.parquet") as file:
        measured.per_user.to_parquet(file, index=False)
    with atomic_file(folder / "test-lists.parquet") as file:
        lists["all"].to_frame().to_parquet(file, index=False)
    return {
        **measured.tables,
        "seconds": {"recommend": seconds["all"]},
        "users_per_second": len(lists["all"]) / seconds["all"],
        "memory_mib": peak_memory_mib(),
        "failed": None,
    }


def _guarded_arm(work: Work, arm: Arm, control: Arm, folder: Path) -> dict[str, Any]:
    """Weigh an arm against its control on validation, and test what the guard lets through."""
    split = work.split
    at = [work.folder(one) for one in (arm, control)]
    rows = [read_json(folder / "arm.json") for folder in at]
    tasks = [TransferTask.load(one / ("model-train" if work.refit else "model")) for one in at]
    start = time.perf_counter()
    found = guard(
        tasks[0].recommender,
        tasks[1].recommender,
        split.valid,
        histories=split.valid_history,
        allow=split.valid_items,
        k=work.ks[0],
        rng=work.rng,
    )
    seconds = time.perf_counter() - start
    valid, recommender = _valid_score(work, found.recommender), found.recommender
    if work.refit:
        tasks = [TransferTask.load(one / "model") for one in at]
        recommender = found.refitted(tasks[0].recommender, tasks[1].recommender)
    task, row = (tasks[0], rows[0]) if found.verdict.kept else (tasks[1], rows[1])
    task.recommender = recommender
    task.save(folder / "model")
    facts = _asked(work, task, folder)
    carried = ("content", "settings", "weights", "curve")
    return {
        **{name: row[name] for name in carried}, "guard_of": arm.name, "trials": [], "valid": valid, **facts,
        "seconds": {**facts["seconds"], "guard": seconds, "fit": row["seconds"]["fit"]},
        "guard": {"arm": arm.name, "control": control.name, **found.verdict.to_dict()},
    }  # fmt: skip


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins at the size of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
