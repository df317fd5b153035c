"""`HybridItems` on fine-tuned against frozen text embeddings, for warm items and for new ones.

    python benchmarks/finetune.py --data DATA_DIR amazon_beauty citeulike_a [--epochs N ...]

DATA_DIR holds `amazon_beauty/` (next item: all weights are fitted without each user's last two events; validation
predicts the last but one, the test the last, with the validation event in the history) and `citeulike_a/` (titles
only; only items without interactions are ranked). MiniLM is tuned on the training events by `FineTune`; its report,
with a validation score per epoch on items held out from those events, goes into the results.

The variants are HybridItems on frozen embeddings, on tuned ones, and on both side by side; each chooses among the same
few settings on validation. The test is scored once; differences to frozen are paired over users. An interrupted tuning
continues from its checkpoint in OUT. `--tiny` runs on generated titles and writes no results.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import RESULTS, header, write_results

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.encoders import Fusion, SentenceText, encode_items
from recotransfer.evaluation.metrics import POPULARITY_BUCKETS, hits, ndcg, popularity_bucket, popularity_counts, recall
from recotransfer.evaluation.split import Split
from recotransfer.evaluation.splits import given, leave_last
from recotransfer.evaluation.uncertainty import interval, paired
from recotransfer.recommenders import HybridItems
from recotransfer.transfer import FineTune

SHARPNESS = (4.0, 5.0, 6.5)  # the settings that every variant chooses from


def beauty(folder: Path) -> tuple[Items, Split, int]:
    with gzip.open(folder / "amazon_beauty" / "sequences.txt.gz", "rt") as file:
        rows = [line.split() for line in file]
    events = pd.DataFrame([(u, i, at) for u, *found in rows for at, i in enumerate(found)], columns=["u", "i", "t"])
    table = pd.read_csv(folder / "amazon_beauty" / "items.csv.gz", dtype=str)
    items = titled(table["asin"], table["title"])
    log = Interactions.from_frame(events, user="u", item="i", time="t").with_items(items.ids)
    return items, leave_last(log), 10


def citeulike(folder: Path) -> tuple[Items, Split, int]:
    table = pd.read_csv(folder / "citeulike_a" / "items.csv.gz", dtype=str)
    pairs = pd.read_csv(folder / "citeulike_a" / "interactions.csv.gz", dtype=str)
    items = titled(table["item"], table["title"])
    parts = {name: pairs[pairs["split"] == name] for name in ("train", "cold_valid", "cold_test")}
    logs = [Interactions.from_frame(part).with_items(items.ids) for part in parts.values()]
    only = [pd.unique(parts[name]["item"]) for name in ("cold_valid", "cold_test")]
    return items, given(*logs, valid_items=only[0], test_items=only[1]), 20


def generated(_: Path) -> tuple[Items, Split, int]:
    """Titles of eight topics, and users who each keep to one topic."""
    rng = np.random.default_rng(0)
    topic = np.arange(80) % 8
    titles = [f"topic {'abcdefgh'[t]} number {n}" for n, t in enumerate(topic)]
    rows = [
        (user, int(item), at)
        for user in range(60)
        for at, item in enumerate(rng.choice(np.flatnonzero(topic == user % 8), 6, replace=False))
    ]
    items = titled(pd.Series(range(80)), pd.Series(titles))
    log = Interactions.from_frame(pd.DataFrame(rows, columns=["u", "i", "t"]), user="u", item="i", time="t")
    return items, leave_last(log.with_items(items.ids)), 10


SETS = {"amazon_beauty": beauty, "citeulike_a": citeulike, "tiny": generated}


def titled(ids: pd.Series, titles: pd.Series) -> Items:
    return Items(IdMap(ids), pd.DataFrame({"title": titles}), {"title": "text"})


def fused(parts: list[Embeddings]) -> Embeddings:
    return Fusion().fit(parts).transform(parts)


def metrics_per_user(split: Split, part: str, model: HybridItems, k: int) -> tuple[np.ndarray, np.ndarray]:
    """NDCG and recall at k of each user with truth in the part."""
    truth, history, items = (
        (split.valid, split.valid_history, split.valid_items)
        if part == "valid"
        else (split.test, split.test_history, split.test_items)
    )
    users = truth.users.take(np.unique(truth.user))
    only = None if items is None else Filter(allow=items.ids)
    found = hits(model.recommend(users, k, filter=only, histories=history), truth)
    return ndcg(found, k), recall(found, k)


def variant(name: str, vectors: Embeddings, split: Split, k: int) -> dict[str, Any]:
    """The variant's best setting on validation and its test, per user."""
    start, tried = time.perf_counter(), {}
    for sharpness in SHARPNESS:
        model = HybridItems(sharpness=sharpness).fit(split.train, vectors)
        tried[sharpness] = (float(metrics_per_user(split, "valid", model, k)[0].mean()), model)
    best = max(tried, key=lambda s: tried[s][0])
    gain, share = metrics_per_user(split, "test", tried[best][1], k)
    return {
        "variant": name,
        "sharpness": best,
        "trials": {str(s): round(value, 4) for s, (value, _) in tried.items()},
        "ndcg": gain,
        "recall": share,
        "seconds": round(time.perf_counter() - start, 1),
    }


def rows_of(name: str, found: list[dict[str, Any]], split: Split, k: int) -> list[dict[str, Any]]:
    """One row per variant, compared with the first: over all users, and by the popularity of the item to be found."""
    counts = popularity_counts(split.train)
    user, first = np.unique(split.test.user, return_index=True)
    bucket = popularity_bucket(counts[split.test.item[first]])
    single = len(user) == len(split.test)
    out = []
    for one in found:
        row = {"set": name, **{key: one[key] for key in ("variant", "sharpness", "trials", "seconds")}}
        for metric in ("ndcg", "recall"):
            row[f"{metric}@{k}"] = rounded(interval(one[metric]))
            if one is not found[0]:
                row[f"{metric}@{k} less {found[0]['variant']}"] = rounded(paired(one[metric], found[0][metric]))
        for b, (least, most) in enumerate(POPULARITY_BUCKETS if single else ()):
            here = bucket == b
            if here.sum() > 1:
                label = f"{least}-{most}" if most is not None else f">{least - 1}"
                row[f"ndcg@{k}, target of {label} users"] = rounded(interval(one["ndcg"][here]))
                if one is not found[0]:
                    row[f"difference, {label}"] = rounded(paired(one["ndcg"][here], found[0]["ndcg"][here]))
        out.append(row)
    return out


def rounded(values: Any) -> list[float]:
    return [round(float(v), 4) for v in values]


def one_set(name: str, a: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    items, split, k = SETS[name](a.data)
    frozen = SentenceText()
    settings = {key: getattr(a, key) for key in ("objective", "epochs", "learning_rate", "batch_size", "lora")}
    tuner = FineTune(folder=out / name, trainable_layers=a.layers, layer_decay=a.layer_decay, **settings)
    tuned = tuner.tune(frozen, items, split.train)
    report = {k: v for k, v in tuner.report_.items() if k != "settings"}
    report["settings"] = {**settings, "trainable_layers": a.layers, "layer_decay": a.layer_decay}
    print(json.dumps({"set": name, "tuning": report}), flush=True)
    before, after = (encode_items(items, e, cache=out / "cache").embeddings for e in (frozen, tuned))
    variants = {"frozen": [before], "tuned": [after], "both": [before, after]}
    found = [variant(label, fused(parts), split, k) for label, parts in variants.items()]
    return [{"set": name, "tuning": report}, *rows_of(name, found, split, k)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/finetune"), help="checkpoints and tuned models")
    parser.add_argument("--objective", default="pairs", choices=["pairs", "elsa", "labels"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--layers", type=int, help="number of top layers to train; all by default")
    parser.add_argument("--layer-decay", type=float, default=0.9)
    parser.add_argument("--lora", type=int)
    parser.add_argument("--tiny", action="store_true")
    a = parser.parse_args()
    facts = header()
    if a.tiny:
        a.epochs, a.layers = 1, 1
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(json.dumps(row) for row in one_set("tiny", a, Path(folder))))
        return
    path = RESULTS / "finetune.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in a.sets:
        rows = one_set(name, a, a.out)
        print("\n".join(json.dumps(row) for row in rows), flush=True)
        kept = [row for row in kept if row["set"] != name] + rows
        write_results("finetune", facts, kept)


if __name__ == "__main__":
    main()
