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
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from recotransfer import __version__
from recotransfer.arms import GUARDED, Arm, Work, check_names, died, done, guarded, run_arm, write_failed
from recotransfer.artifacts import digest, digest_of_events, read_json, write_json
from recotransfer.data import Items
from recotransfer.errors import InputError
from recotransfer.evaluation import plain
from recotransfer.report import write_report
from recotransfer.splits import Split
from recotransfer.task import TransferTask
from recotransfer.transfer.transferability import neighbour_agreement
from recotransfer.uncertainty import holm, paired

_JOB, _ARMS, _RESULTS, _REPORT = "_job.json", "arms", "results.json", "report.html"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PROCESS = "recotransfer arm"  # name of the processes that arms run in
_SCRIPT_AGAIN = 97  # exit status of such a process that came upon a benchmark to run before its arm
_PACKAGES = ("recotransfer", "numpy", "scipy", "torch", "implicit", "faiss-cpu", "faiss-gpu", "numba", "optuna")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark into a folder: `results.json`, `report.html`, and `arms/NAME/` with model, trials and figures.

    A script must call `run` under `if __name__ == "__main__":`, for the processes of the arms import the script again.

    Attributes:
        out: the folder; empty or new, unless `run` resumes.
        ks: list lengths to report; NDCG at the first is what settings are chosen by and arms compared in.
        trials: models fitted for every arm that is tuned.
        refit: fit the chosen settings again with the validation events before the test. Published tables mostly do
            not; a shop does. Never compare one form with the other.
        rng: seed of the search and of the intervals.
        workers: arms that run side by side.
        threads: threads of each; times are those of so many.
        progress: show a bar on a terminal, and say what was read of the content.
    """

    out: str | Path
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
            task: brings encoders, tuners, transfers, cache and starting weights of modalities; its recommender is not
                looked at. Tuners learn once, from the events of training.
            title: of the report.
            resume: go on with an interrupted benchmark of the same description; arms that failed run again.

        Raises:
            InputError: settings or arms that cannot be, a folder in use, or a script that calls this without
                `if __name__ == "__main__":`.
        """
        if multiprocessing.current_process().name == _PROCESS:
            sys.exit(_SCRIPT_AGAIN)  # the process that runs the benchmark says what is wrong, once
        self._check(arms, split)
        out = Path(self.out)
        _claim(out, resume)
        task = TransferTask(progress=self.progress) if task is None else task
        catalogue = items.ids.union(split.train.items)
        split = split.with_items(catalogue)
        content = any(arm.content for arm in arms)
        if task.tuners and content:
            task = task.tuned(items, split.train)
        parts = task.encode(items) if content else []
        for report in task.reports_ if parts and self.progress else []:
            print(report, file=sys.stderr)
        specs = [encoder.spec() for encoder in task.encoders_] if parts else []
        work = Work(
            out, self.ks, self.trials, self.refit, self.rng, items, split, parts, specs, task.weights, task.transfers
        )
        self._begin(work, arms)
        self._run_all(work, arms)
        results = self._results(work, arms, title)
        write_json(out / _RESULTS, results)
        write_report(results, out / _REPORT)
        return results

    def _check(self, arms: Sequence[Arm], split: Split) -> None:
        for name in ("trials", "workers", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.ks or min(self.ks) < 1:
            raise InputError(f"ks must be list lengths of at least 1, got {self.ks}")
        if not arms:
            raise InputError("no arms to run; name a recommender")
        check_names(arms)
        if (users := len(np.unique(split.test.user))) < 2:
            raise InputError(f"test has events of {users} user only, and intervals need two at least; hold out more, "
                             "or give a longer log")  # fmt: skip

    def _begin(self, work: Work, arms: Sequence[Arm]) -> None:
        """Write what the folder is for, or check that it holds this very benchmark."""
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
            "transfers": [[transfer.name(), transfer.params()] for transfer in work.transfers],
        }
        if not (work.out / _ARMS).exists():  # no arm had begun
            write_json(work.out / _JOB, job)
            return
        earlier = read_json(work.out / _JOB)
        if changed := sorted(name for name in job if earlier.get(name) != job[name]):
            told = [f"{name} changed" if name in ("data", "vectors") else
                    f"{name} was {earlier.get(name)} and is {job[name]}" for name in changed]  # fmt: skip
            raise InputError(f"{work.out} holds another benchmark: {', '.join(told)}; give another folder, "
                             "or the same settings")  # fmt: skip
        for arm in arms:
            path = work.folder(arm) / "arm.json"
            facts = read_json(path) if path.exists() else None
            mine = type(arm.recommender).__name__, plain(arm.recommender.params())
            if facts is not None and (facts.get("class"), facts.get("start")) != mine:
                raise InputError(f"{work.out} holds {arm.name!r} as {facts['class']} with other settings; name the arm "
                                 "otherwise, or give another folder")  # fmt: skip

    def _run_all(self, work: Work, arms: Sequence[Arm]) -> None:
        total = sum(self.trials if arm.tuned else 1 for arm in arms)
        with (
            _threads(self.threads),
            tqdm(total=total, desc="fitting", unit=" models", disable=None if self.progress else True) as bar,
        ):

            def show() -> None:
                bar.n = sum(_trials_done(work.folder(arm), arm.tuned) for arm in arms)
                bar.refresh()

            _run_each(work, [(arm,) for arm in arms], self.workers, show)
            pairs = [(arm, control) for arm in arms for control in arms if control.control_of == arm.name]
            bar.set_postfix_str("guarding" if pairs else "")
            _run_each(work, [pair for pair in pairs if all(done(work.folder(arm)) for arm in pair)], self.workers, show)

    def _results(self, work: Work, arms: Sequence[Arm], title: str) -> dict[str, Any]:
        rows, users, guards = [], {}, []
        for arm in arms:
            for line in (arm, guarded(arm)):
                folder = work.folder(line)
                if not (folder / "arm.json").exists():
                    continue
                rows.append(read_json(folder / "arm.json"))
                if rows[-1]["failed"] is None:
                    users[line.name] = pd.read_parquet(folder / "users.parquet")
                if "guard" in rows[-1]:
                    guards.append(rows[-1].pop("guard"))
        for verdict in guards:
            verdict["test"] = self._difference(users, verdict["arm"], verdict["control"])
            verdict["guarded_test"] = self._difference(users, verdict["arm"] + GUARDED, verdict["control"])
        best = max((row for row in rows if row["failed"] is None), key=lambda row: row["valid"], default=None)
        reference = None if best is None else best["name"]
        results = {
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
        return dict(plain(results))

    def _difference(
        self, users: Mapping[str, pd.DataFrame], arm: str, against: str, ranking: str = "all"
    ) -> dict[str, float] | None:
        if arm not in users or against not in users:
            return None
        one, other = (
            users[name].loc[users[name]["ranking"] == ranking, self.primary].to_numpy() for name in (arm, against)
        )
        return {name: float(value) for name, value in paired(one, other, rng=self.rng)._asdict().items()}

    def _comparisons(self, users: Mapping[str, pd.DataFrame], reference: str) -> list[dict[str, Any]]:
        """Every arm against the reference in every ranking; Holm's correction goes over the arms of a ranking."""
        out = []
        for ranking in users[reference]["ranking"].unique():
            pairs = {name: self._difference(users, name, reference, ranking) for name in users if name != reference}
            rows: list[dict[str, Any]] = [
                {"ranking": ranking, "arm": name, "against": reference, "metric": self.primary, **difference}
                for name, difference in pairs.items()
                if difference is not None
            ]
            for row, p in zip(rows, holm(np.array([row["p"] for row in rows])), strict=True):
                row["p_holm"] = float(p)
            out += rows
        return out

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


def _claim(out: Path, resume: bool) -> None:
    """Make the folder, or refuse one in use, before any work."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a new or empty folder for the benchmark")
    out.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if names >= {_JOB, _ARMS}:
        if not resume:
            raise InputError(f"{out} holds an earlier benchmark; go on with it by --resume (in Python resume=True), or "
                             "give another folder")  # fmt: skip
    elif names - {_JOB}:
        raise InputError(f"{out} holds other files; give a new or empty folder for the benchmark")


def _run_each(work: Work, jobs: Sequence[tuple[Arm, ...]], workers: int, show: Callable[[], None]) -> None:
    """`run_arm` for every job in a process of its own; an arm whose process dies has failed, the others go on."""
    context = multiprocessing.get_context("spawn")  # OpenMP after a fork hangs
    waiting, running = list(jobs), dict[SpawnProcess, tuple[Arm, ...]]()
    try:
        while waiting or running:
            fresh = []
            while waiting and len(running) < workers:
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_work_alone, args=(receive,), name=_PROCESS)
                process.start()
                receive.close()
                running[process] = waiting[0]
                fresh.append((send, waiting.pop(0)))
            for send, job in fresh:
                with send, contextlib.suppress(BrokenPipeError):  # its exit status says more
                    send.send((work, *job))
            connection.wait([process.sentinel for process in running], timeout=2)
            for process in [process for process in running if process.exitcode is not None]:
                _check_ended(work, running.pop(process), process.exitcode or 0)
            show()
    finally:
        for process in running:
            process.kill()
            process.join()


def _work_alone(receive: connection.Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, interrupted, ends its arms itself

    def follow() -> None:
        parent.join()  # killed: nobody else would end this arm, and a resumed benchmark runs it anew
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own has semaphores, of which a process that is ended leaves warnings behind
    run_arm(*receive.recv())


def _check_ended(work: Work, job: tuple[Arm, ...], status: int) -> None:
    """An arm's own errors are in its folder already; this looks at processes that ended before they could write any."""
    if status == _SCRIPT_AGAIN:
        raise InputError(
            "every arm runs in a process of its own, which imports this script again and came upon the benchmark; "
            'put what the script does under if __name__ == "__main__":'
        )
    line = job[0] if len(job) == 1 else guarded(job[0])
    if status and not done(work.folder(line)):
        write_failed(work.folder(line), line, died(status))


def _transferability(work: Work) -> list[dict[str, Any]]:
    """What could be known of each encoder before any training; see `neighbour_agreement`."""
    return [
        {"encoder": part.source, "score": "neighbour agreement",
         "note": "how many times as often content neighbours go together as items of their popularity; 1 is chance",
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
