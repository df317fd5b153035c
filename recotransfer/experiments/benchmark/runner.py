"""`Benchmark`: recommenders equally tuned on validation, tested once, compared with intervals, and reported.

Each variant runs in its own process with a fixed number of threads. Results therefore do not depend on how many run in
parallel, memory is measured per variant, and a variant that fails does not affect the others. Finished variants and
trials are kept, so that an interrupted benchmark can be resumed.
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
    run_each,
)
from recotransfer.experiments.benchmark.report import write_report
from recotransfer.experiments.benchmark.variants import GUARDED, Variant, check_labels, guarded
from recotransfer.experiments.benchmark.work import Work, done
from recotransfer.io.artifacts import digest, digest_of_events, read_json, write_json
from recotransfer.numerics.rounding import first_best
from recotransfer.numerics.threads import limited_threads
from recotransfer.progress import progress_bar
from recotransfer.registry import transfers
from recotransfer.task import TransferTask

_JOB, _VARIANTS, _RESULTS, _REPORT = "_job.json", "variants", "results.json", "report.html"


@checked_class
@dataclass(frozen=True)
class Benchmark:
    """A benchmark in a folder: `results.json`, `report.html`, and `variants/NAME/` with model, trials and results.

    A script must call `run` under `if __name__ == "__main__":`, because the processes of the variants import the
    script.

    Attributes:
        out: the folder; new or empty, unless `run` resumes.
        ks: list lengths to report; settings are chosen and variants compared by NDCG at the first.
        trials: models fitted for each tuned variant.
        refit: refit with the validation events before the test. Most published tables do not; a shop would. Results
            with and without refit are not comparable.
        seed: random seed of the search and of the intervals.
        workers: variants that run in parallel.
        threads: threads per variant; times are measured with that many.
        progress: show a progress bar on a terminal, and print the encoders' reports.
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
        """The metric by which settings are chosen and variants compared."""
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
        """Run all variants, write results and report, and return the results (the content of `results.json`).

        Args:
            items: the catalogue.
            split: the protocol; its item ids may include items outside the catalogue.
            variants: the variants to compare; see `variants_of`.
            task: source of the encoders, tuners, transfers, cache and initial modality weights; its recommender is
                ignored. Tuners run once, on the training events.
            title: title of the report.
            resume: continue an interrupted benchmark with the same description; failed variants run again.

        Raises:
            InputError: invalid settings or variants, a folder in use, all variants failed (results and report are still
                written), or a script that is read from standard input or calls this without
                `if __name__ == "__main__":`.
        """
        if multiprocessing.current_process().name == PROCESS_NAME:
            sys.exit(SCRIPT_AGAIN)  # the parent process reports the missing __main__ guard, once

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
        """Validate the settings, the variants and the size of the test."""
        for name in ("trials", "workers", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

        if not self.ks or min(self.ks) < 1:
            raise InputError(f"ks must be one or more list lengths of at least 1, got {self.ks}")
        if not variants:
            raise InputError("there are no variants to run; name at least one recommender")

        check_labels(variants)
        if (users := len(np.unique(split.test.user))) < 2:
            raise InputError(f"test has events of {users} user only, and intervals need at least two; hold out more "
                             "events, or give a longer log")  # fmt: skip

    def _begin(self, work: Work, variants: Sequence[Variant]) -> None:
        """Write the description of this benchmark to the folder, or check that the folder has the same one."""
        split = work.split
        job = {
            "package": __version__,
            "ks": list(self.ks),
            "trials": self.trials,
            "refit": self.refit,
            "seed": self.seed,
            "threads": self.threads,
            "data": digest(
                [digest_of_events(part) for part in (split.train, split.valid, split.test, split.test_history)]
            ),
            "vectors": digest([digest(each.vectors.ravel()) for each in work.embeddings]),
            "weights": work.weights,
            "transfers": [[transfers.name_of(type(transfer)), transfer.params()] for transfer in work.transfers],
        }
        if not (work.out / _VARIANTS).exists():  # no variant has started
            write_json(work.out / _JOB, job)
            return

        earlier = read_json(work.out / _JOB)
        if changed := sorted(name for name in job if earlier.get(name) != job[name]):
            changes = [f"{name} changed" if name in ("data", "vectors") else
                       f"{name} was {earlier.get(name)} and is now {job[name]}" for name in changed]  # fmt: skip
            raise InputError(f"{work.out} holds another benchmark: {', '.join(changes)}; give another folder, "
                             "or the same settings")  # fmt: skip

        for variant in variants:
            path = work.folder(variant) / "variant.json"
            facts = read_json(path) if path.exists() else None
            mine = type(variant.recommender).__name__, plain(variant.recommender.params())
            if facts is not None and (facts.get("class"), facts.get("start")) != mine:
                raise InputError(f"{work.out} holds {variant.name!r} as {facts['class']} with other settings; rename "
                                 "the variant, or give another folder")  # fmt: skip

    def _run_all(self, work: Work, variants: Sequence[Variant]) -> None:
        """Run all variants, then the guard on each variant that ran together with its ablation."""
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
        """Results of all variants, collected from their folders, with comparisons and verdicts."""
        rows, users, guards = [], {}, []
        for variant in variants:
            for each in (variant, guarded(variant)):
                folder = work.folder(each)
                if not (folder / "variant.json").exists():
                    continue

                rows.append(read_json(folder / "variant.json"))
                if rows[-1]["failed"] is None:
                    users[each.name] = pd.read_parquet(folder / "users.parquet")

                if "guard" in rows[-1]:
                    guards.append(rows[-1].pop("guard"))

        for verdict in guards:
            verdict["test"] = self._difference(users, verdict["variant"], verdict["ablation"])
            verdict["guarded_test"] = self._difference(users, verdict["variant"] + GUARDED, verdict["ablation"])

        # The reference of all comparisons is chosen on validation, so that the test does not influence it.
        # A guarded variant that is another's model is no variant of its own.
        finished = [row for row in rows if row["failed"] is None and row.get("same_as") is None]
        reference = finished[first_best([row["valid"] for row in finished])]["name"] if finished else None
        results = {
            "format": 1,
            "title": title,
            "created": time.strftime("%Y-%m-%d %H:%M"),
            "environment": {**environment(), "threads": self.threads, "workers": self.workers},
            "protocol": self._protocol(work),
            "primary": self.primary,
            "reference": reference,
            "variants": rows,
            "comparisons": []
            if reference is None
            else self._comparisons({row["name"]: users[row["name"]] for row in finished}, reference),
            "guard": guards,
            "transferability": _transferability(work),
        }

        return dict(plain(results))

    def _difference(
        self, users: Mapping[str, pd.DataFrame], variant: str, against: str, ranking: str = "all"
    ) -> dict[str, float] | None:
        """`variant` minus `against` on the primary metric, paired over users; None if either failed."""
        if variant not in users or against not in users:
            return None

        one, other = (
            users[name].loc[users[name]["ranking"] == ranking, self.primary].to_numpy() for name in (variant, against)
        )
        return {name: float(value) for name, value in paired(one, other, seed=self.seed)._asdict().items()}

    def _comparisons(self, users: Mapping[str, pd.DataFrame], reference: str) -> list[dict[str, Any]]:
        """Each variant against the reference in each ranking, with Holm's correction over the ranking's variants.

        `users` holds each model once: a repeated test would make the correction stricter for the others.
        """
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
        """The conditions under which the results were measured."""
        split = work.split
        warm = np.bincount(split.train.item, minlength=len(split.train.items)) > 0

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
            "items_without_training_events": int((~warm).sum()),
            "encoders": [part.source for part in work.embeddings],
        }


def _claim(out: Path, resume: bool) -> None:
    """Create the folder; raise `InputError` if it is in use."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a new or empty folder for the benchmark")

    out.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if names >= {_JOB, _VARIANTS}:
        if not resume:
            raise InputError(f"{out} holds an earlier benchmark; resume it with --resume (in Python resume=True), or "
                             "give another folder")  # fmt: skip
    elif names - {_JOB}:
        raise InputError(f"{out} holds other files; give a new or empty folder for the benchmark")


def _transferability(work: Work) -> list[dict[str, Any]]:
    """A score of each encoder that needs no training; see `neighbour_agreement`."""
    return [
        {"encoder": part.source, "score": "neighbour agreement",
         "note": "how many times as often content neighbours are consumed together as random items of equal "
                 "popularity; 1 is chance",
         "value": float(neighbour_agreement(part, work.split.train, seed=work.seed))}
        for part in work.embeddings
    ]  # fmt: skip


def _trials_done(folder: Path, tuned: bool) -> int:
    """Number of models that the variant has fitted so far."""
    path = folder / ("trials.json" if tuned else "variant.json")
    if not path.exists():
        return 0

    return len(json.loads(path.read_text())["trials"]) if tuned else 1
