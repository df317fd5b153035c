"""A set of recommenders on one protocol: tuned alike on validation, tested once, compared with intervals, reported.

Every arm runs in a process of its own with a fixed number of threads, so results do not depend on how many run side by
side, memory is the arm's own, and an arm that fails takes no other with it. Finished arms and finished trials are kept:
an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from recotransfer import __version__
from recotransfer.arms import GUARDED, Arm, Work, run_arm, run_guard
from recotransfer.artifacts import digest, digest_of_events, read_json, write_json
from recotransfer.data import Items
from recotransfer.errors import InputError
from recotransfer.report import write_report
from recotransfer.splits import Split
from recotransfer.task import TransferTask
from recotransfer.transfer.transferability import neighbour_agreement
from recotransfer.uncertainty import holm, paired

_JOB, _RESULTS, _REPORT = "_job.json", "results.json", "report.html"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PACKAGES = ("recotransfer", "numpy", "scipy", "torch", "implicit", "faiss-cpu", "faiss-gpu", "numba", "optuna")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark into a folder: `results.json`, `report.html`, and `arms/NAME/` with model, trials and figures.

    Attributes:
        out: the folder; empty or new, unless `run` resumes.
        ks: list lengths to report; NDCG at the first is what settings are chosen by and arms compared in.
        trials: models fitted for every arm that is tuned.
        refit: fit the chosen settings again with the validation events before the test. Published tables mostly do
            not; a shop does. Never compare one form with the other.
        rng: seed of the search and of the intervals.
        workers: arms that run side by side.
        threads: threads of each; times are those of so many.
        progress: show a bar.
    """

    out: Path
    ks: tuple[int, ...] = (10,)
    trials: int = 20
    refit: bool = False
    rng: int = 0
    workers: int = 1
    threads: int = 1
    progress: bool = True

    @property
    def primary(self) -> str:
        """The metric arms are chosen and compared by."""
        return f"ndcg@{self.ks[0]}"

    def run(
        self,
        items: Items,
        split: Split,
        arms: Sequence[Arm],
        *,
        task: TransferTask | None = None,
        title: str = "Offline benchmark",
        resume: bool = False,
    ) -> dict[str, Any]:
        """Run all arms, write results and report, and return the results.

        Args:
            items: the catalogue.
            split: the protocol; its item map may hold more items than the catalogue.
            arms: see `arms_of`.
            task: brings encoders, cache and starting weights of modalities; its recommender is not looked at.
            title: of the report.
            resume: go on with an interrupted benchmark of the same description.
        """
        self._check(arms)
        task = TransferTask(progress=self.progress) if task is None else task
        catalogue = items.ids.union(split.train.items)
        split = split.with_items(catalogue)
        parts = task.encode(items) if any(arm.content for arm in arms) else []
        specs = [encoder.spec() for encoder in task.encoders_] if parts else []
        work = Work(self.out, self.ks, self.trials, self.refit, self.rng, items, split, parts, specs, task.weights)
        self._begin(work, arms, resume)
        pairs = [(arm, next((c for c in arms if c.control_of == arm.name), None)) for arm in arms]
        guards = [(arm, control) for arm, control in pairs if control is not None]
        self._run_all(work, arms, guards)
        results = self._results(work, arms, title)
        write_json(self.out / _RESULTS, results)
        write_report(results, self.out / _REPORT)
        return results

    def _check(self, arms: Sequence[Arm]) -> None:
        for name in ("trials", "workers", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.ks or min(self.ks) < 1:
            raise InputError(f"ks must be list lengths of at least 1, got {self.ks}")
        if not arms:
            raise InputError("no arms to run; name a recommender")

    def _begin(self, work: Work, arms: Sequence[Arm], resume: bool) -> None:
        """Claim the folder, or check that it holds this very benchmark."""
        s = work.split
        job = {
            "package": __version__,
            "ks": list(self.ks),
            "trials": self.trials,
            "refit": self.refit,
            "seed": self.rng,
            "threads": self.threads,
            "data": digest([digest_of_events(part) for part in (s.train, s.valid, s.test, s.test_history)]),
            "vectors": digest([digest(part.vectors.ravel()) for part in work.parts]),
            "weights": work.weights,
        }
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file; give a new or empty folder for the benchmark")
        self.out.mkdir(parents=True, exist_ok=True)
        if not (self.out / _JOB).exists():
            if any(p for p in self.out.iterdir() if not p.name.startswith(".")):
                raise InputError(f"{self.out} holds other files; give a new or empty folder for the benchmark")
            write_json(self.out / _JOB, job)
        elif not resume:
            raise InputError(
                f"{self.out} holds an earlier benchmark; go on with it by --resume, or give another folder"
            )
        elif changed := sorted(name for name in job if read_json(self.out / _JOB).get(name) != job[name]):
            raise InputError(f"{self.out} holds another benchmark: {', '.join(changed)} changed; give another folder, "
                             "or the same settings")  # fmt: skip

    def _run_all(self, work: Work, arms: Sequence[Arm], guards: Sequence[tuple[Arm, Arm]]) -> None:
        total = sum(self.trials if arm.tuned else 1 for arm in arms)
        context = multiprocessing.get_context("spawn")  # OpenMP after a fork hangs
        with (
            _threads(self.threads),
            ProcessPoolExecutor(self.workers, mp_context=context, max_tasks_per_child=1) as pool,
            tqdm(total=total, desc="fitting", unit=" models", disable=None if self.progress else True) as bar,
        ):
            jobs = {pool.submit(run_arm, work, arm): arm for arm in arms}
            self._watch(jobs, arms, bar)
            for (arm, _), done in [(pair, pool.submit(run_guard, work, *pair)) for pair in guards]:
                bar.set_postfix_str(f"guarding {arm.name}")
                done.result()

    def _watch(self, jobs: Mapping[Future[None], Arm], arms: Sequence[Arm], bar: Any) -> None:
        left = set(jobs)
        while left:
            done, left = wait(left, timeout=2)
            for job in done:
                job.result()  # what an arm itself did wrong is in its folder; this is a broken process
            bar.n = sum(_trials_done(self.out / "arms" / arm.folder, arm.tuned) for arm in arms)
            bar.refresh()

    def _results(self, work: Work, arms: Sequence[Arm], title: str) -> dict[str, Any]:
        rows, users, guards = [], {}, []
        for arm in arms:
            for name in (arm.name, arm.name + GUARDED):
                folder = self.out / "arms" / replace(arm, name=name).folder
                if not (folder / "arm.json").exists():
                    continue
                rows.append(read_json(folder / "arm.json"))
                if rows[-1]["failed"] is None:
                    users[name] = pd.read_parquet(folder / "users.parquet")
                if "guard" in rows[-1]:
                    guards.append(rows[-1].pop("guard"))
        for verdict in guards:
            verdict["test"] = self._difference(users, verdict["arm"], verdict["control"])
            verdict["guarded_test"] = self._difference(users, verdict["arm"] + GUARDED, verdict["control"])
        best = max((row for row in rows if row["failed"] is None), key=lambda row: row["valid"], default=None)
        reference = None if best is None else best["name"]
        return {
            "format": 1,
            "title": title,
            "created": time.strftime("%Y-%m-%d %H:%M"),
            "environment": {**environment(), "threads": self.threads, "workers": self.workers},
            "protocol": self._protocol(work),
            "primary": self.primary,
            "reference": reference,
            "arms": rows,
            "comparisons": [] if reference is None else self._comparisons(users, reference),
            "guard": guards,
            "transferability": _transferability(work),
        }

    def _difference(self, users: Mapping[str, pd.DataFrame], arm: str, against: str) -> dict[str, float] | None:
        if arm not in users or against not in users:
            return None
        one, other = users[arm][self.primary].to_numpy(), users[against][self.primary].to_numpy()
        return {name: float(value) for name, value in paired(one, other, rng=self.rng)._asdict().items()}

    def _comparisons(self, users: Mapping[str, pd.DataFrame], reference: str) -> list[dict[str, Any]]:
        pairs = {name: self._difference(users, name, reference) for name in users if name != reference}
        rows: list[dict[str, Any]] = [
            {"arm": name, "against": reference, "metric": self.primary, **difference}
            for name, difference in pairs.items()
            if difference is not None
        ]
        for row, p in zip(rows, holm(np.array([row["p"] for row in rows])), strict=True):
            row["p_holm"] = float(p)
        return rows

    def _protocol(self, work: Work) -> dict[str, Any]:
        split = work.split
        seen = np.bincount(split.train.item, minlength=len(split.train.items)) > 0
        return {
            "split": split.name,
            "facts": dict(split.facts),
            "form": "refit" if self.refit else "strict",
            "k": list(self.ks),
            "trials": self.trials,
            "seed": self.rng,
            "users": len(split.train.users),
            "items": len(split.train.items),
            "train_events": len(split.train),
            "valid_events": len(split.valid),
            "test_events": len(split.test),
            "test_users": len(np.unique(split.test.user)),
            "items_without_training_events": int((~seen).sum()),
            "encoders": [part.source for part in work.parts],
        }


def _transferability(work: Work) -> list[dict[str, Any]]:
    """What could be known of each encoder before any training; see `neighbour_agreement`."""
    return [
        {"encoder": part.source, "score": "neighbour agreement",
         "value": float(neighbour_agreement(part, work.split.train, rng=work.rng))}
        for part in work.parts
    ]  # fmt: skip


def _trials_done(folder: Path, tuned: bool) -> int:
    path = folder / ("trials.json" if tuned else "arm.json")
    if not path.exists():
        return 0
    return len(json.loads(path.read_text())["trials"]) if tuned else 1


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Thread pools of the processes started meanwhile: libraries read these when they are loaded."""
    wanted = {**dict.fromkeys(_THREADS, str(count)), "OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def environment() -> dict[str, Any]:
    """Machine, versions, commit of the package's checkout and command: what a figure must be read with."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "--short", "HEAD")
    changed = " with uncommitted changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{_cpu()}, {cores} cores",
        "python": platform.python_version(),
        "packages": packages,
        "commit": commit + changed if commit else None,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
