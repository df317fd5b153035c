"""Incremental learning over five periods: partial_fit against a refit and a stale model; forgetting and replay.

    python benchmarks/adaptive.py --data DATA_DIR

DATA_DIR holds `movielens_small/` (ratings in chronological order) and `amazon_beauty/` (without times: each user's
sequence is cut into five, so that a period is a fifth of every user's sequence; one user in four). After each period,
models trained on the periods so far rank the next period's events of the users they know; the stale model is trained on
the first period only. Reported are NDCG@10 per user, paired over users, and the seconds of `partial_fit` and of `fit`
on all events. To measure forgetting, ItemKNN and SASRec are then trained on the last period alone, on it with a replay
of the earlier ones, and on all periods. `--tiny` runs on generated events.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import header, write_results

from recotransfer.data import Interactions
from recotransfer.diagnostics import drift
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.evaluation.uncertainty import interval, paired
from recotransfer.recommenders import ALS, BPR, EASE, HybridItems, ItemKNN, Popularity, Recommender, SASRec
from recotransfer.transfer import Replay, forgetting

PERIODS, K = 5, 10
SHARE = 4  # one Beauty user in this many is used


def movielens(folder: Path) -> list[Interactions]:
    """Five consecutive periods of 20,000 ratings; every rating counts as positive."""
    table = pd.read_csv(folder / "movielens_small" / "ratings.csv.gz").sort_values("timestamp", kind="stable")
    return in_time(table.rename(columns={"userId": "user", "movieId": "item", "timestamp": "time"}))


def beauty(folder: Path) -> list[Interactions]:
    """Five periods: the first fifth of each user's sequence, the second, ..."""
    with gzip.open(folder / "amazon_beauty" / "sequences.txt.gz", "rt") as file:
        rows = [line.split() for line in file][::SHARE]
    table = pd.DataFrame(
        [(user, item, at, at / len(items)) for user, *items in rows for at, item in enumerate(items)],
        columns=["user", "item", "time", "share"],
    )
    period = (table["share"] * PERIODS).astype(int)
    return [logged(table[period == p]) for p in range(PERIODS)]


def generated() -> list[Interactions]:
    """A small log of users with one of eight tastes; later users have tastes that earlier ones had not."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(300):
        taste = rng.integers(4 + user // 100)
        pool = np.flatnonzero(np.arange(80) % 8 == taste)
        rows += [(f"u{user}", int(i), user * 10 + 2000 * rng.random()) for i in rng.choice(pool, 8, replace=False)]
    return in_time(pd.DataFrame(rows, columns=["user", "item", "time"]).sort_values("time"))


def in_time(table: pd.DataFrame) -> list[Interactions]:
    """Five periods with equal numbers of events."""
    return [logged(table.iloc[rows]) for rows in np.array_split(np.arange(len(table)), PERIODS)]


def logged(table: pd.DataFrame) -> Interactions:
    return Interactions.from_frame(table, time="time")


def models(tiny: bool) -> dict[str, Callable[[], Recommender]]:
    """The models by name, with default settings; SASRec is trained for fewer epochs to save time."""
    few: dict[str, Any] = {"dim": 16, "epochs": 10} if tiny else {"epochs": 30}
    return {
        "Popularity": Popularity,
        "ItemKNN": ItemKNN,
        "EASE": EASE,
        "HybridItems": HybridItems,
        "ALS": ALS,
        "BPR": lambda: BPR(epochs=100),
        "SASRec": lambda: SASRec(**few),
    }


def concat_logs(parts: Iterable[Interactions]) -> Interactions:
    first, *others = parts
    for part in others:
        first = first.concat(part)
    return first


def new_to_user(events: Interactions, known: Interactions) -> Interactions:
    """The events of known users with items that are new to them."""
    users = known.users.positions(events.users.ids, missing="negative")[events.user]
    items = known.items.positions(events.items.ids, missing="negative")[events.item]
    seen = (items >= 0) & np.isin(users * len(known.items) + items, known.user * len(known.items) + known.item)
    return events.select((users >= 0) & ~seen)


def quality(model: Recommender, truth: Interactions, known: Interactions) -> np.ndarray:
    """(users,) NDCG@10, with the events in `known` whose items the model knows as the history."""
    mine = model.catalogue_.positions(known.items.ids, missing="negative") >= 0
    ids = truth.users.take(np.unique(truth.user))
    histories = known.select(mine[known.item]) if model.scores_new_users else None
    return ndcg(hits(model.recommend(ids, K, histories=histories), truth), K)


def timed(work: Callable[[], Recommender]) -> tuple[Recommender, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def stream(name: str, make: Callable[[], Recommender], periods: list[Interactions]) -> dict[str, Any]:
    """One model over all periods: means, paired differences and seconds."""
    stale, updated = make().fit(periods[0]), make().fit(periods[0])
    found: dict[str, list[np.ndarray]] = {"stale": [], "partial_fit": [], "refit": []}
    seconds: dict[str, list[float]] = {"partial_fit": [], "refit": []}
    for at in range(1, PERIODS - 1):
        known = concat_logs(periods[: at + 1])
        updated, spent = timed(lambda new=periods[at], model=updated: model.partial_fit(new))
        seconds["partial_fit"].append(spent)
        refit, spent = timed(lambda log=known: make().fit(log))
        seconds["refit"].append(spent)
        truth = new_to_user(periods[at + 1], known)
        if not stale.scores_new_users:  # all three variants are tested on the same users
            some = np.isin(truth.user, np.flatnonzero(stale.events_.users.positions(truth.users.ids, "negative") >= 0))
            truth = truth.select(some)
        for variant, model in (("stale", stale), ("partial_fit", updated), ("refit", refit)):
            found[variant].append(quality(model, truth, known))
    whole = {variant: np.concatenate(values) for variant, values in found.items()}
    row: dict[str, Any] = {"model": name, "how": updated.update_["how"], "users": len(whole["refit"])}
    row |= {variant: interval(values)._asdict() for variant, values in whole.items()}
    row["partial_fit - refit"] = paired(whole["partial_fit"], whole["refit"])._asdict()
    row["partial_fit - stale"] = paired(whole["partial_fit"], whole["stale"])._asdict()
    row["seconds"] = {variant: [round(s, 3) for s in values] for variant, values in seconds.items()}
    row["time ratio"] = round(sum(seconds["partial_fit"]) / sum(seconds["refit"]), 3)
    return row


def forgotten(name: str, periods: list[Interactions], make: Callable[[], Recommender]) -> list[dict[str, Any]]:
    """Forgetting: NDCG@10 of a model retrained on a recent window minus that of one trained on all earlier periods.

    The truth is the last item of each user with three or more, in the earlier periods (old) and in the last one (new).
    """
    old, old_truth = without_last(concat_logs(periods[:-1]))
    new, new_truth = without_last(periods[-1])
    before, histories = make().fit(old), old.concat(new)
    variants = {"new alone": new}
    for share in (0.05, 0.2):
        variants[f"new and replay of {share:.0%}"] = Replay(int(share * len(old)))(old, new)
    variants["all"] = histories
    rows = []
    for variant, log in variants.items():
        after, spent = timed(lambda log=log: make().fit(log))
        lost = forgetting(before, after, old_truth, new_truth, histories=histories, k=K)
        row = {side: change._asdict() for side, change in lost._asdict().items()}
        rows.append({"variant": variant, "events": len(log), "seconds": round(spent, 2), **row})
        shown = "  ".join(f"{side} {c.value:+.4f} [{c.low:+.4f}, {c.high:+.4f}]" for side, c in lost._asdict().items())
        print(f"  {name:8s} learned from {variant:22s} {shown}", flush=True)
    return rows


def without_last(events: Interactions) -> tuple[Interactions, Interactions]:
    """The events without the last one of each user with three or more, and those last ones."""
    held = hold_out_last(events)
    return held.train, held.valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", default=["movielens_small", "amazon_beauty"])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--tiny", action="store_true", help="generated events; writes no results")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.tiny:
        parser.error("give --data, or --tiny")
    facts, rows = header(), []
    readers = {"movielens_small": movielens, "amazon_beauty": beauty}
    for name in ["generated"] if arguments.tiny else arguments.sets:
        periods = generated() if arguments.tiny else readers[name](arguments.data)
        drifted = drift(periods[-2], periods[-1], model=Popularity().fit(concat_logs(periods[:-2])))
        print(f"{name}: {drifted.words}", flush=True)
        row: dict[str, Any] = {"set": name, "drift": drifted.to_dict(), "stream": []}
        for kind, make in models(arguments.tiny).items():
            if arguments.models and kind not in arguments.models:
                continue
            found = stream(kind, make, periods)
            row["stream"].append(found)
            change = found["partial_fit - refit"]
            print(
                f"  {kind:12s} stale {found['stale']['value']:.4f}  partial_fit {found['partial_fit']['value']:.4f}  "
                f"refit {found['refit']['value']:.4f}  partial_fit - refit {change['value']:+.4f} "
                f"[{change['low']:+.4f}, {change['high']:+.4f}]  time x{found['time ratio']:.2f} ({found['how']})",
                flush=True,
            )
        if not arguments.models:
            row["forgetting"] = {
                kind: forgotten(kind, periods, models(arguments.tiny)[kind]) for kind in ("ItemKNN", "SASRec")
            }
        rows.append(row)
    if not (arguments.models or arguments.tiny):
        write_results("adaptive", facts, rows)


if __name__ == "__main__":
    main()
