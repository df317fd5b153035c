"""Repeat purchases: the flagship, which has a part for them, against the user's own most frequent items.

    python benchmarks/repeats.py --data DATA_DIR [--only SET ...]

DATA_DIR holds one folder per data set, as for `everywhere.py`, but here repeats are kept. The last fifth of each user's
visits (all events at one time), and at least one, is held out from users with two visits or more. The distinct items of
these visits are to be found among all items, those of the history included (`exclude_seen=False`):

    flagship                   the recommender of `TransferTask()`, default settings, with content
    without repeats            the same model without its part for repeats
    frequency                  items by the number of the user's visits with them, then by their number of users
    recent frequency           the same, where a visit counts half after so many days; the half-life is that of 15, 30,
                               60, 120 and 240 days which is best for the last fifth of the visits of the rest

NDCG@20 is a mean over users with a 95% bootstrap interval; the flagship's leads are paired over users. The last columns
are means over the users who did repeat an item, and over the others. `--tiny` runs on a part of the sample shop and
writes no results.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import header, write_results
from everywhere import SETS, Exam, K, exam, read
from numpy.typing import NDArray

from recotransfer.data import Interactions, Recommendations
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.uncertainty import interval, paired
from recotransfer.numerics.histories import seen_items
from recotransfer.task import TransferTask

SHOPS = ("grocery_complete_journey", "online_retail")
HALF_LIVES = (15, 30, 60, 120, 240)
DAY = 86400.0


def visits(events: Interactions) -> NDArray[np.int64]:
    """The number of each event's visit, counted through the log, which is sorted by user and time."""
    assert events.time is not None
    return np.cumsum((np.diff(events.user, prepend=-1) != 0) | (np.diff(events.time, prepend=np.nan) != 0)) - 1


def last_visits(events: Interactions) -> Exam:
    events = events.select(events.order)
    visit = visits(events)
    user = events.user[np.flatnonzero(np.diff(visit, prepend=-1))]
    count = np.bincount(user, minlength=len(events.users))
    place = np.arange(len(user)) - (np.cumsum(count) - count)[user]
    out = np.where(count < 2, 0, np.maximum(count // 5, 1))
    held = (place >= (count - out)[user])[visit]
    return exam(events, np.flatnonzero(~held), np.flatnonzero(held))


def by_frequency(events: Interactions, users: NDArray[Any], half_life: float = np.inf) -> Recommendations:
    """The items of most visits with the user, each counting half after `half_life` days; ties by number of users."""
    n, age = len(events.items), np.zeros(len(events))
    if np.isfinite(half_life):
        newest = np.full(len(events.users), -np.inf)
        np.maximum.at(newest, events.user, events.time)
        age = (newest[events.user] - events.time) / DAY

    once = np.unique(visits(events) * n + events.item, return_index=True)[1]
    popular = np.bincount(seen_items(events).indices, minlength=n)
    prior = popular / (1 + popular.max()) * 1e-6  # below any purchase that counts for anything
    start = np.searchsorted(events.user[once], np.arange(len(events.users) + 1))
    lists = []
    for user in events.users.positions(users):
        rows = once[start[user] : start[user + 1]]
        scores = prior + np.bincount(events.item[rows], 0.5 ** (age[rows] / half_life), minlength=n)
        lists.append(np.argsort(-scores, kind="stable")[:K])

    return Recommendations(users, events.items, np.array(lists), np.zeros((len(lists), K), np.float32))


def scored(found: Recommendations, truth: Interactions) -> NDArray[np.float64]:
    return ndcg(hits(found, truth), K)


def best_half_life(events: Interactions) -> float:
    """The half-life whose lists are best for the last fifth of the visits."""
    cut = last_visits(events)
    users = cut.truth.users.take(np.unique(cut.truth.user))
    return max(HALF_LIVES, key=lambda days: scored(by_frequency(cut.train, users, days), cut.truth).mean())


def measure(name: str, a: argparse.Namespace, cache: Path) -> list[dict[str, Any]]:
    shop = read(name, a)
    cut = last_visits(shop.events)
    users = cut.truth.users.take(np.unique(cut.truth.user))
    task = TransferTask(encoders=shop.encoders, cache=cache, progress=False)
    vectors = task.encode(shop.items) if shop.encoders else None
    start = time.process_time()
    model = task.fit(shop.items, cut.train, embeddings=vectors).recommender
    seconds = round(time.process_time() - start, 1)

    bare = copy.copy(model)
    bare.again_ = None
    days = best_half_life(cut.train)
    lists = {
        "flagship": model.recommend(users, K, exclude_seen=False),
        "without repeats": bare.recommend(users, K, exclude_seen=False),
        "frequency": by_frequency(cut.train, users),
        f"recent frequency, {days} days": by_frequency(cut.train, users, days),
    }
    scores = {method: scored(found, cut.truth) for method, found in lists.items()}
    repeated = seen_items(cut.truth).multiply(seen_items(cut.train)).sum(axis=1)[np.unique(cut.truth.user)] > 0
    facts = {"set": name, "users": len(users), "repeated": int(repeated.sum()), "fit_s": seconds}
    return [{**facts, "method": method, **figures(scores, method, repeated)} for method in scores]


def figures(scores: Mapping[str, Any], method: str, repeated: Any) -> dict[str, Any]:
    own = scores[method]
    out = {f"ndcg@{K}": rounded(interval(own))}
    out |= {
        who: rounded([own[at].mean()])[0] for who, at in (("who repeat", repeated), ("others", ~repeated)) if at.any()
    }
    if method != "flagship":
        out["flagship minus this"] = rounded(paired(scores["flagship"], own))

    return out


def rounded(numbers: Any) -> list[float]:
    return [round(float(x), 6) for x in numbers]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| set (users, of whom repeat) | method | NDCG@{K} | flagship minus this | who repeat | others |"]
    lines.append("|" + " --- |" * 6)
    for row in rows:
        value, low, high = row[f"ndcg@{K}"]
        lead = row.get("flagship minus this")
        shown = "-" if lead is None else f"{lead[0]:+.4f} [{lead[1]:+.4f}, {lead[2]:+.4f}]"
        parts = " | ".join(f"{row[who]:.4f}" if who in row else "-" for who in ("who repeat", "others"))
        name = f"{row['set']} ({row['users']}, {row['repeated']})"
        lines.append(f"| {name} | {row['method']} | {value:.4f} [{low:.4f}, {high:.4f}] | {shown} | {parts} |")

    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=list(SETS), metavar="SET", default=SHOPS, help="sets to measure")
    parser.add_argument("--out", type=Path, default=Path("out/repeats"), help="folder of vectors")
    parser.add_argument("--tiny", action="store_true", help="quick check: part of the sample shop, no results written")
    a = parser.parse_args()
    if not (a.data or a.tiny):
        parser.error("give the folder of the data sets with --data, or --tiny")

    facts = header()
    if a.tiny:
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + table(measure("sample_shop", a, Path(folder))))
        return

    rows = [row for name in a.only for row in measure(name, a, a.out / "cache")]
    write_results("repeats", facts, rows)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
