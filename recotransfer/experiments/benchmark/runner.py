"""A set of recommenders on one protocol: tuned alike on validation, tested once, compared with intervals, reported.

Every variant runs in a process of its own with a fixed number of threads, so results do not depend on how many run side
by side, memory is the variant's own, and a variant that fails takes no other with it. Finished variants and finished
trials are kept: an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recotransfer._version import __version__
from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.diagnostics import neighbour_agreement
from recotransfer.encoders import encoder_spec
from recotransfer.errors import InputError
from recotransfer.evaluation.split import Split
from recotransfer.evaluation.uncertainty import holm, paired
from recotransfer.experiments.benchmark.measure import plain
from recotransfer.experiments.benchmark.processes import (
    PROCESS_NAME,
    SCRIPT_AGAIN,
    check_script,
    environment,
    limited_threads,
    run_each,
)
from recotransfer.experiments.benchmark.report import write_report
from recotransfer.experiments.benchmark.variants import GUARDED, Variant, check_labels, guarded
from recotransfer.experiments.benchmark.work import Work, done
from recotransfer.io.artifacts import digest, digest_of_events, read_json, write_json
from recotransfer.numerics.rounding import first_best
from recotransfer.progress import progress_bar
from recotransfer.registry import transfers
from recotransfer.task import TransferTask

_JOB, _VARIANTS, _RESULTS, _REPORT = "_job.json", "variants", "results.json", "report.html"


@checked_class
@dataclass(frozen=True)
class Benchmark:
    """One benchmark into a folder: `results.json`, `report.html`, and `variants/NAME/` with model, trials and figures.

    A script must call `run` under `if __name__ == "__main__":`, for the processes of the variants import the script
    again.

    Attributes:
        out: the folder; empty or new, unless `run` resumes.
        ks: list lengths to report; NDCG at the first is what settings are chosen by and variants compared in.
        trials: models fitted for every variant that is tuned.
        refit: fit the chosen settings again with the validation events before the test. Published tables mostly do
            not; a shop does. Never compare one form with the other.
        seed: random seed of the search and of the intervals.
        workers: variants that run side by side.
        threads: threads of each; times are those of so many.
        progress: show a bar on a terminal, and say what was read of the content.
    """

    out: str | Path
    ks: tuple[int, ...] = (10,)
    trials: int = 20
    refit: bool = False
    seed: int = 0
    workers: int = 1
    threads: int = 1
    progress: bool = True

    @property
    def primary(self) -> str:
        """The metric variants are chosen and compared by."""
        return f"ndcg@{self.ks[0]}"

    def run(
        self,
        items: Items,
        split: Split,
        variants: Sequence[Variant],
        *,
        task: TransferTask | None = None,
        title: str = "Offline benchmark",
        resume: bool = False,
    ) -> dict[str, Any]:
        """Run all variants, write results and report, and return the results.

        Args:
            items: the catalogue.
            split: the protocol; its item map may hold more items than the catalogue.
            variants: see `variants_of`.
            task: brings encoders, tuners, transfers, cache and starting weights of modalities; its recommender is not
                looked at. Tuners learn once, from the events of training.
            title: of the report.
            resume: go on with an interrupted benchmark of the same description; variants that failed run again.

        Raises:
            InputError: settings or variants that cannot be, a folder in use, every variant failed (results and report
                are written all the same), or a script that comes from standard input or calls this without
                `if __name__ == "__main__":`.
        """
        if multiprocessing.current_process().name == PROCESS_NAME:
            sys.exit(SCRIPT_AGAIN)  # the process that runs the benchmark says what is wrong, once

        check_script()
        self._check(variants, split)
        out = Path(self.out)
        _claim(out, resume)
        task = TransferTask(progress=self.progress) if task is None else task
        catalogue = items.ids.union(split.train.items)
        split = split.with_items(catalogue)
        content = any(variant.content for variant in variants)
        if task.tuners and content:
            task = task.tuned(items, split.train)

        embeddings = task.encode(items) if content else []
        for report in task.reports_ if embeddings and self.progress else []:
            print(report, file=sys.stderr)

        specs = [encoder_spec(encoder) for encoder in task.encoders_] if embeddings else []
        work = Work(
            out,
            self.ks,
            self.trials,
            self.refit,
            self.seed,
            items,
            split,
            embeddings,
            specs,
            task.weights,
            task.transfers,
        )
        self._begin(work, variants)
        self._run_all(work, variants)
        results = self._results(work, variants, title)
        write_json(out / _RESULTS, results)
        write_report(results, out / _REPORT)
        if all(row["failed"] is not None for row in results["variants"]):
            first = results["variants"][0]["failed"]
            raise InputError(
                f"every variant failed, the first with {first}; {out}/variants/NAME/traceback.txt says more"
            )

        return results

    def _check(self, variants: Sequence[Variant], split: Split) -> None:
        for name in ("trials", "workers", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

        if not self.ks or min(self.ks) < 1:
            raise InputError(f"ks must be list lengths of at least 1, got {self.ks}")
        if not variants:
            raise InputError("no variants to run; name a recommender")

        check_labels(variants)
        if (users := len(np.unique(split.test.user))) < 2:
            raise InputError(f"test has events of {users} user only, and intervals need two at least; hold out more, "
                             "or give a longer log")  # fmt: skip

    def _begin(self, work: Work, variants: Sequence[Variant]) -> None:
        """Write what the folder is for, or check that it holds this very benchmark."""
        s = work.split
        job = {
            "package": __version__,
            "ks": list(self.ks),
            "trials": self.trials,
            "refit": self.refit,
            "seed": self.seed,
            "threads": self.threads,
            "data": digest([digest_of_events(part) for part in (s.train, s.valid, s.test, s.test_history)]),
            "vectors": digest([digest(part.vectors.ravel()) for part in work.embeddings]),
            "weights": work.weights,
            "transfers": [[transfers.name_of(type(transfer)), transfer.params()] for transfer in work.transfers],
        }
        if not (work.out / _VARIANTS).exists():  # no variant had begun
            write_json(work.out / _JOB, job)
            return

        earlier = read_json(work.out / _JOB)
        if changed := sorted(name for name in job if earlier.get(name) != job[name]):
            told = [f"{name} changed" if name in ("data", "vectors") else
                    f"{name} was {earlier.get(name)} and is {job[name]}" for name in changed]  # fmt: skip
            raise InputError(f"{work.out} holds another benchmark: {', '.join(told)}; give another folder, "
                             "or the same settings")  # fmt: skip

        for variant in variants:
            path = work.folder(variant) / "variant.json"
            facts = read_json(path) if path.exists() else None
            mine = type(variant.recommender).__name__, plain(variant.recommender.params())
            if facts is not None and (facts.get("class"), facts.get("start")) != mine:
                raise InputError(f"{work.out} holds {variant.name!r} as {facts['class']} with other settings; name the "
                    "variant "
                                 "otherwise, or give another folder")  # fmt: skip

    def _run_all(self, work: Work, variants: Sequence[Variant]) -> None:
        total = sum(self.trials if variant.tuned else 1 for variant in variants)
        with (
            limited_threads(self.threads),
            progress_bar(total, desc="fitting", unit=" models", shown=self.progress) as bar,
        ):

            def show() -> None:
                bar.n = sum(_trials_done(work.folder(variant), variant.tuned) for variant in variants)
                bar.refresh()

            run_each(work, [(variant,) for variant in variants], self.workers, show)
            pairs = [
                (variant, ablation)
                for variant in variants
                for ablation in variants
                if ablation.ablation_of == variant.name
            ]
            bar.set_postfix_str("guarding" if pairs else "")
            run_each(
                work,
                [pair for pair in pairs if all(done(work.folder(variant)) for variant in pair)],
                self.workers,
                show,
            )

    def _results(self, work: Work, variants: Sequence[Variant], title: str) -> dict[str, Any]:
        rows, users, guards = [], {}, []
        for variant in variants:
            for line in (variant, guarded(variant)):
                folder = work.folder(line)
                if not (folder / "variant.json").exists():
                    continue

                rows.append(read_json(folder / "variant.json"))
                if rows[-1]["failed"] is None:
                    users[line.name] = pd.read_parquet(folder / "users.parquet")

                if "guard" in rows[-1]:
                    guards.append(rows[-1].pop("guard"))

        for verdict in guards:
            verdict["test"] = self._difference(users, verdict["variant"], verdict["ablation"])
            verdict["guarded_test"] = self._difference(users, verdict["variant"] + GUARDED, verdict["ablation"])

        ended = [row for row in rows if row["failed"] is None]
        reference = ended[first_best([row["valid"] for row in ended])]["name"] if ended else None
        results = {
            "format": 1,
            "title": title,
            "created": time.strftime("%Y-%m-%d %H:%M"),
            "environment": {**environment(), "threads": self.threads, "workers": self.workers},
            "protocol": self._protocol(work),
            "primary": self.primary,
            "reference": reference,
            "variants": rows,
            "comparisons": [] if reference is None else self._comparisons(users, reference),
            "guard": guards,
            "transferability": _transferability(work),
        }

        return dict(plain(results))

    def _difference(
        self, users: Mapping[str, pd.DataFrame], variant: str, against: str, ranking: str = "all"
    ) -> dict[str, float] | None:
        if variant not in users or against not in users:
            return None

        one, other = (
            users[name].loc[users[name]["ranking"] == ranking, self.primary].to_numpy() for name in (variant, against)
        )
        return {name: float(value) for name, value in paired(one, other, seed=self.seed)._asdict().items()}

    def _comparisons(self, users: Mapping[str, pd.DataFrame], reference: str) -> list[dict[str, Any]]:
        """Every variant against the reference, in every ranking; Holm's correction is over a ranking's variants."""
        out = []
        for ranking in users[reference]["ranking"].unique():
            pairs = {name: self._difference(users, name, reference, ranking) for name in users if name != reference}
            rows: list[dict[str, Any]] = [
                {"ranking": ranking, "variant": name, "against": reference, "metric": self.primary, **difference}
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
            "seed": self.seed,
            "users": len(split.train.users),
            "items": len(split.train.items),
            "train_events": len(split.train),
            "valid_events": len(split.valid),
            "test_events": len(split.test),
            "test_users": len(np.unique(split.test.user)),
            "items_without_training_events": int((~seen).sum()),
            "encoders": [part.source for part in work.embeddings],
        }


def _claim(out: Path, resume: bool) -> None:
    """Make the folder, or refuse one in use, before any work."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a new or empty folder for the benchmark")

    out.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if names >= {_JOB, _VARIANTS}:
        if not resume:
            raise InputError(f"{out} holds an earlier benchmark; go on with it by --resume (in Python resume=True), or "
                             "give another folder")  # fmt: skip
    elif names - {_JOB}:
        raise InputError(f"{out} holds other files; give a new or empty folder for the benchmark")


def _transferability(work: Work) -> list[dict[str, Any]]:
    """What could be known of each encoder before any training; see `neighbour_agreement`."""
    return [
        {"encoder": part.source, "score": "neighbour agreement",
         "note": "how many times as often content neighbours go together as items of their popularity; 1 is chance",
         "value": float(neighbour_agreement(part, work.split.train, seed=work.seed))}
        for part in work.embeddings
    ]  # fmt: skip


def _trials_done(folder: Path, tuned: bool) -> int:
    path = folder / ("trials.json" if tuned else "variant.json")
    if not path.exists():
        return 0

    return len(json.loads(path.read_text())["trials"]) if tuned else 1
