"""The flagship against every baseline on ordinary logs, and the list of those on which it loses.

    python benchmarks/everywhere.py --data DATA_DIR [--only SET ...] [--model NAME ...]

DATA_DIR holds one folder per data set; the sample shop comes with the repository, and its preferences were planted.
Every model runs as the package has it by default: encoders, fusion and settings. "flagship" is the recommender of
`TransferTask()`. Of a repeated pair of user and item only the last event is kept. Three splits, each with a fit of its
own:

    warm    the last fifth of each user's events is held out (at random in logs without times); all items are ranked
    cold    a tenth of the items with at least five users is held out with all their events; only these are ranked
    all     these items and, of the others, the last fifth of each user's events are held out; all items are ranked in
            one list

Scores are NDCG@20 and recall@20, means over the users with a history and with something held out, with 95% bootstrap
intervals; items of the history are not ranked. Differences are paired over users. Seconds are processor time of the
fit, without encoding but with the compilation of loops on a new machine; memory is the peak during the fit above what
the process held before it: data, vectors and libraries.

Every cell of the matrix runs in its own process and is kept in OUT under a name made from its set, split, model with
settings, encoders and data: it is not measured again without `--again`, so use that after a change of a model's code;
every row names the commit it was measured at. `results/everywhere.json` is written after every cell. The text of the
musical instruments is their reviews, held-out ones included. `--tiny` runs two models on a part of the sample shop and
writes no results.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from common import RESULTS, header, write_results

from recotransfer.data import Filter, Interactions, Items
from recotransfer.encoders import Encoder, default_encoders
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import hits, ndcg, recall
from recotransfer.evaluation.uncertainty import interval, paired
from recotransfer.experiments.benchmark.processes import environment
from recotransfer.experiments.benchmark.work import peak_memory_mib
from recotransfer.io.artifacts import atomic_file
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.numerics.histories import last_events
from recotransfer.numerics.threads import limited_threads, thread_count
from recotransfer.recommenders import Recommender
from recotransfer.registry import recommenders
from recotransfer.task import TransferTask

SAMPLE = Path(__file__).parent.parent / "sample_data"
K = 20
COLD_LEAST = 5  # users that an item needs before it may be held out
FLAGSHIP, ABLATION = "flagship", "flagship without content"
BASELINES = ("HybridItems", "HybridRanker", "EASE", "ItemKNN", "ALS", "RidgeProfiles", "ContentProfiles",
             "TransitionRings", "Popularity")  # fmt: skip
TINY = (FLAGSHIP, "Popularity")
METRICS = {f"ndcg@{K}": ndcg, f"recall@{K}": recall}


# -- data sets ---------------------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """A data set: items with a column `item` and content; events with columns `user`, `item` and, if known, time."""

    items: pd.DataFrame
    events: pd.DataFrame


def interactions(folder: Path) -> Tables:
    items = pd.read_csv(folder / "items.csv.gz").drop(columns="isbn", errors="ignore")
    return Tables(items, pd.read_csv(folder / "interactions.csv.gz")[["user", "item", "timestamp"]])


def grocery(folder: Path) -> Tables:
    items = pd.read_csv(folder / "products.csv.gz").rename(columns={"product_id": "item"})
    columns = {"household_id": "user", "product_id": "item", "transaction_timestamp": "timestamp"}
    events = pd.read_csv(folder / "transactions.csv.gz")[list(columns)].rename(columns=columns)
    return Tables(items, events[events["item"].isin(items["item"])])


def movielens(folder: Path) -> Tables:
    columns = {"userId": "user", "movieId": "item", "timestamp": "timestamp"}
    items = pd.read_csv(folder / "movies.csv.gz")[["movieId", "title", "genres", "plot"]].rename(columns=columns)
    return Tables(items, pd.read_csv(folder / "ratings.csv.gz")[list(columns)].rename(columns=columns))


def reviews(folder: Path) -> Tables:
    table = pd.read_csv(folder / "reviews.csv.gz").rename(columns={"asin": "item", "unix_time": "timestamp"})
    text = table["review"].fillna("").groupby(table["item"]).agg(" ".join).str[:2000]
    return Tables(text.rename("text").reset_index(), table[["user", "item", "timestamp"]])


def evaluation_rows(folder: Path) -> Tables:
    """A log of which only histories and targets are known: the longest of each user is the user's sequence."""
    rows = pd.read_csv(folder / "eval_rows.csv.gz")
    rows["sequence"] = (rows["history"].astype(str) + " " + rows["item"].astype(str)).str.split()
    rows["length"] = rows["sequence"].str.len()
    longest = rows.sort_values(["user", "split", "length"]).groupby("user")["sequence"].last()
    events = in_order(longest.items())
    return Tables(pd.read_csv(folder / "items.csv.gz"), events.astype({"item": np.int64}))


def sequences(folder: Path, log: str, key: str, text: str) -> Tables:
    items = pd.read_csv(folder / "items.csv.gz", dtype=str)[[key, text]].rename(columns={key: "item"})
    with gzip.open(folder / log, "rt") as lines:
        return Tables(items, in_order((user, rest) for user, *rest in map(str.split, lines)))


def in_order(found: Any) -> pd.DataFrame:
    """Events of users with their items, oldest first; the time is the position in the sequence."""
    rows = [(user, item, at) for user, sequence in found for at, item in enumerate(sequence)]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def without_content(folder: Path) -> Tables:
    events = pd.read_csv(folder / "events.csv.gz")[["user", "item"]]
    return Tables(pd.DataFrame({"item": np.unique(events["item"])}), events)


def articles(folder: Path) -> Tables:
    items = pd.read_csv(folder / "items.csv.gz")[["item", "title"]]
    return Tables(items, pd.read_csv(folder / "interactions.csv.gz")[["user", "item"]])


def sample_shop(folder: Path, tiny: bool = False) -> Tables:
    columns = {"user_id": "user", "item_id": "item"}
    items = pd.read_csv(SAMPLE / "items.csv").rename(columns=columns).drop(columns="image")
    events = pd.read_csv(SAMPLE / "events.csv").rename(columns=columns).drop(columns="query")
    if tiny:  # no text, so that nothing needs a language model
        return Tables(items[["item", "category", "price"]], events[events["user"] < "U0300"])
    return Tables(items, events)


SETS: dict[str, Callable[[Path], Tables]] = {
    "grocery_complete_journey": grocery,
    "movielens_small": movielens,
    "library_loans": interactions,
    "online_retail": interactions,
    "online_courses": interactions,
    "amazon_musical_instruments": reviews,
    "amazon18_office": evaluation_rows,
    "amazon18_industrial": evaluation_rows,
    "retailrocket_small": without_content,
    "amazon_beauty": partial(sequences, log="sequences.txt.gz", key="asin", text="title"),
    "amazon_toys": partial(sequences, log="s3rec_sequences.txt.gz", key="s3rec_id", text="textual_id"),
    "citeulike_a": articles,
    "sample_shop": sample_shop,
}


class Shop(NamedTuple):
    """A data set as the package reads it; `digest` identifies the tables it was read from."""

    name: str
    items: Items
    events: Interactions
    encoders: list[Encoder]
    digest: str


def read(name: str, a: argparse.Namespace) -> Shop:
    tables = sample_shop(SAMPLE, tiny=True) if a.tiny else SETS[name](Path(a.data or ".") / name)
    digest = hashlib.blake2b(digest_size=8)
    for table in tables:
        digest.update(table.to_csv(index=False).encode())

    kinds: Any = {"category": "category"} if a.tiny else None
    items = read_items(tables.items, kinds=kinds).data
    events = read_interactions(tables.events).data
    events = events.with_items(items.ids.union(events.items))
    try:
        encoders = default_encoders(items)
    except InputError:  # nothing to encode
        encoders = []
    return Shop(name, items, events, encoders, digest.hexdigest())


# -- splits ------------------------------------------------------------------------------------------------------------


class Exam(NamedTuple):
    """What a model is fitted on, what it is to find, and the items that it ranks; None are all items."""

    train: Interactions
    truth: Interactions
    candidates: Sequence[Any] | None = None


def exam(events: Interactions, train: Any, held: Any, candidates: Sequence[Any] | None = None) -> Exam:
    """The exam on the events at rows `held`, of users who have events at rows `train`."""
    known = np.bincount(events.user[train], minlength=len(events.users)) > 0
    return Exam(events.select(train), events.select(held[known[events.user[held]]]), candidates)


def _last_fifth(events: Interactions, rows: Any, seed: int) -> tuple[Any, Any]:
    """The rows in order, and which are the last fifth of their user's; in a log without times, any fifth."""
    if events.time is None:
        rows = rows[np.random.default_rng(seed).permutation(len(rows))]
        rows = rows[np.argsort(events.user[rows], kind="stable")]

    user = events.user[rows]
    count = np.bincount(user, minlength=len(events.users))
    place = np.arange(len(rows)) - (np.cumsum(count) - count)[user]
    return rows, place >= (count - count // 5)[user]


def warm(events: Interactions, seed: int = 0) -> Exam:
    rows, held = _last_fifth(events, last_events(events)[0], seed)
    return exam(events, rows[~held], rows[held])


def _new_items(events: Interactions, rows: Any, rng: np.random.Generator) -> Any:
    """(items,) bool, the tenth of the items with enough users that is held out."""
    users = np.bincount(events.item[rows], minlength=len(events.items))
    enough = rng.permutation(np.flatnonzero(users >= COLD_LEAST))
    new = np.zeros(len(events.items), bool)
    new[enough[: max(1, len(enough) // 10)]] = True
    return new


def cold(events: Interactions, seed: int = 0) -> Exam:
    rows = last_events(events)[0]
    new = _new_items(events, rows, np.random.default_rng(seed))
    held = new[events.item[rows]]
    return exam(events, rows[~held], rows[held], events.items.take(np.flatnonzero(new)))


def everything(events: Interactions, seed: int = 0) -> Exam:
    rows = last_events(events)[0]
    new = _new_items(events, rows, np.random.default_rng(seed))[events.item[rows]]
    others, held = _last_fifth(events, rows[~new], seed)
    return exam(events, others[~held], np.concatenate([rows[new], others[held]]))


SPLITS: dict[str, Callable[[Interactions], Exam]] = {"warm": warm, "cold": cold, "all": everything}


# -- cells -------------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A model on a split of a data set: its identity, where it is kept, or why it is not measured."""

    shop: str
    split: str
    model: str
    path: Path
    skipped: str | None


def recommender_of(model: str) -> Recommender:
    """The unfitted model with its default settings."""
    made: Recommender = TransferTask().recommender if model in (FLAGSHIP, ABLATION) else recommenders.make(model)
    return made


def cell_of(shop: Shop, split: str, model: str, folder: Path) -> Cell:
    recommender = recommender_of(model)
    content = bool(shop.encoders) and model != ABLATION
    skipped = None
    if recommender.needs_items and not content:
        skipped = "needs content, and the set has none"
    elif model == ABLATION and not shop.encoders:
        skipped = "the same as the flagship: the set has no content"
    elif split == "cold" and not (recommender.scores_new_items and content):
        skipped = "cannot rank items without events" + ("" if shop.encoders else ": the set has no content")

    encoders = [encoder.name for encoder in shop.encoders] if content else []
    identity = [shop.name, shop.digest, split, K, type(recommender).__name__, recommender.params(), encoders]
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()
    return Cell(
        shop.name, split, model, folder / f"{shop.name}-{split}-{type(recommender).__name__}-{key}.npz", skipped
    )


def measure(shop: Shop, split: str, model: str, cache: Path, path: Path) -> None:
    """Fit and score one cell, and write the users' scores and the costs to `path`."""
    cut = SPLITS[split](shop.events)
    encoders = [] if model == ABLATION else shop.encoders
    task = TransferTask(recommender_of(model), encoders=encoders, cache=cache, progress=False)
    vectors = task.encode(shop.items) if encoders else None
    held, start = memory_from_now_on(), time.process_time()
    task = task.fit(shop.items, cut.train, embeddings=vectors)
    facts: dict[str, Any] = {"fit_s": round(time.process_time() - start, 2)}
    facts |= {"memory_mib": None if held is None else round(peak_memory_mib() - held)}
    facts |= {"commit": environment()["commit"], "date": time.strftime("%Y-%m-%d")}
    asked = cut.truth.users.take(np.unique(cut.truth.user))
    only = None if cut.candidates is None else Filter(allow=cut.candidates)
    found = hits(task.recommend(asked, K, filter=only), cut.truth)
    scores = {name: metric(found, K) for name, metric in METRICS.items()}
    with atomic_file(path) as file:
        np.savez(file, facts=json.dumps(facts), **scores)


def memory_from_now_on() -> float | None:
    """Let the peak of this process start anew, and return what it holds now, in MiB; None where that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_memory_mib()


def run_alone(cell: Cell, a: argparse.Namespace) -> str | None:
    """Measure the cell in a process of its own; the last line of its errors if it fails."""
    line = [sys.executable, __file__, "--cell", cell.shop, cell.split, cell.model, str(cell.path), "--out", str(a.out)]
    line += ["--tiny"] if a.tiny else []
    line += ["--data", str(a.data)] if a.data else []
    with limited_threads(thread_count()):
        done = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False)

    return None if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The users' scores by metric, and the costs of a finished cell."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in METRICS}, json.loads(str(stored["facts"]))


# -- the matrix --------------------------------------------------------------------------------------------------------


def rows_of(cells: Sequence[Cell], failed: Mapping[Path, str]) -> list[dict[str, Any]]:
    """A row per cell that is finished, skipped or failed; the difference is that of the flagship to the row's model."""
    ours = {(c.shop, c.split): c.path for c in cells if c.model == FLAGSHIP and not c.skipped and c.path.exists()}
    rows = []
    for cell in cells:
        row: dict[str, Any] = {"set": cell.shop, "split": cell.split, "model": cell.model}
        if cell.skipped:
            rows.append({**row, "skipped": cell.skipped})
        elif cell.path in failed:
            rows.append({**row, "failed": failed[cell.path]})
        elif cell.path.exists():
            scores, facts = load(cell.path)
            row["users"] = len(next(iter(scores.values())))
            row |= {name: _rounded(interval(values)) for name, values in scores.items()}
            if cell.model != FLAGSHIP and (path := ours.get((cell.shop, cell.split))):
                against = load(path)[0]
                row |= {f"flagship minus this, {n}": _rounded(paired(against[n], scores[n])) for n in METRICS}
            rows.append({**row, **facts})
    return rows


def _rounded(numbers: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(x) else round(x, 6) for x in numbers]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The matrix as a Markdown table; recall and costs are warm / cold / all, leads are those over the row's model."""
    cells = {(row["set"], row["model"], row["split"]): row for row in rows}
    primary, second = METRICS
    shown = [f"{part} {split}" for part in (primary, "flagship's lead") for split in SPLITS]
    lines = [" | ".join(["| set", "model", *shown, second, "fit, processor s", "MiB |"]), "|" + " --- |" * 11]
    for name, model in dict.fromkeys((row["set"], row["model"]) for row in rows):
        found = [cells.get((name, model, split), {}) for split in SPLITS]
        notes = [row.get("skipped") or (f"failed: {row['failed']}" if "failed" in row else "") for row in found]
        scores = [note or _shown(row.get(primary)) for note, row in zip(notes, found, strict=True)]
        leads = [_shown(row.get(f"flagship minus this, {primary}"), sign="+") for row in found]
        rest = [" / ".join(_number(row.get(second, [None])[0], ".3f") for row in found)]
        rest += [" / ".join(_number(row.get(cost), "g") for row in found) for cost in ("fit_s", "memory_mib")]
        lines.append(f"| {' | '.join([name, model, *scores, *leads, *rest])} |")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _shown(found: Sequence[float | None] | None, sign: str = "") -> str:
    if found is None:
        return "-"
    value, low, high = (_number(x, f"{sign}.4f") for x in found[:3])
    return f"{value} [{low}, {high}]"


def losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells in which the whole interval of the flagship's lead is below zero."""
    name = f"flagship minus this, {next(iter(METRICS))}"
    behind = [row for row in rows if (row.get(name) or [None] * 3)[2] is not None and row[name][2] < 0]
    return [f"{row['set']}, {row['split']}, {row['model']}: {_shown(row[name], sign='+')}" for row in behind]


def matrix(
    a: argparse.Namespace, models: Sequence[str], write: Callable[[list[dict[str, Any]]], Any]
) -> list[dict[str, Any]]:
    """Measure what is asked for and not finished, and return the rows of all finished cells of these sets.

    Args:
        a: the arguments of the script.
        models: all models that may have finished cells.
        write: takes the rows so far, after every cell.
    """
    cells: list[Cell] = []
    failed: dict[Path, str] = {}
    for name in a.only or SETS:
        shop = read(name, a)
        TransferTask(encoders=shop.encoders, cache=a.out / "cache").encode(shop.items)
        own = []
        for model in models:
            found = [cell_of(shop, split, model, a.out / "cells") for split in SPLITS]
            if model in (a.model or models) or any(cell.path.exists() for cell in found):
                own += found
        cells += own
        done: set[Path] = set()  # the flagship and its class by name are one cell
        for cell in own:
            if cell.skipped or cell.model not in (a.model or models) or cell.path in done:
                continue
            done.add(cell.path)
            if not cell.path.exists() or a.again:
                if error := run_alone(cell, a):
                    failed[cell.path] = error
                print(progress(cell, error), flush=True)
                write(rows_of(cells, failed))

    return rows_of(cells, failed)


def progress(cell: Cell, error: str | None) -> str:
    if error:
        return f"{cell.shop}, {cell.split}, {cell.model}: failed, {error}"
    scores, facts = load(cell.path)
    means = ", ".join(f"{name} {values.mean():.4f}" for name, values in scores.items())
    return f"{cell.shop}, {cell.split}, {cell.model}: {means}, {facts['fit_s']} s, {facts['memory_mib']} MiB"


def stored_rows() -> list[dict[str, Any]]:
    path = RESULTS / "everywhere.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    print("\n" + table(rows) + "\n")
    lost = losses(rows)
    print(f"The flagship loses by more than the interval in {len(lost)} cells" + (":" if lost else "."))
    print("\n".join(lost))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = (FLAGSHIP, ABLATION, *BASELINES)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=list(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--model", nargs="+", choices=models, metavar="NAME", help=f"of {', '.join(models)}")
    parser.add_argument("--out", type=Path, default=Path("out/everywhere"), help="folder of vectors and finished cells")
    parser.add_argument("--again", action="store_true", help="measure finished cells again")
    parser.add_argument("--tiny", action="store_true", help="quick check: part of the sample shop, no results written")
    parser.add_argument("--cell", nargs=4, metavar=("SET", "SPLIT", "MODEL", "FILE"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.cell:
        name, split, model, path = a.cell
        shop = read(name, a)
        measure(shop, split, model, a.out / "cache", Path(path))
        return

    if not (a.data or a.tiny or a.only == ["sample_shop"]):
        parser.error("give the folder of the data sets with --data, or --tiny")

    facts = header()
    if a.tiny:
        with tempfile.TemporaryDirectory() as folder:
            a.out, a.only, a.model = Path(folder), ["sample_shop"], list(TINY)
            report(matrix(a, models=TINY, write=lambda rows: None))
        return

    kept = stored_rows()

    def write(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        measured = {row["set"] for row in rows}
        both = [row for row in kept if row["set"] not in measured] + rows
        both.sort(key=lambda row: list(SETS).index(row["set"]))
        write_results("everywhere", facts, both)
        return both

    report(write(matrix(a, models=models, write=write)))


if __name__ == "__main__":
    main()
