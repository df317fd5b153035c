"""Multi-task transfer: one map for purchases and attributes against one for each, on new items of Amazon Beauty.

    python benchmarks/multitask.py --data DATA_DIR

DATA_DIR holds `amazon_beauty`. The events of a tenth of the items are held out for validation and those of another
tenth for the test. Maps on frozen MiniLM embeddings of titles are trained on the other items: which of them were bought
together ("purchase") and which have the same brand or category ("attribute"). New items are then ranked for their
buyers by the cosine to what else they bought (ContentProfiles). Every variant chooses its learning rate among the same
`RATES` on validation; the test is scored once; differences are paired over users. `--tiny` runs on generated titles and
writes no results.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import header, write_results
from finetune import beauty, fused, rounded, titled

from recotransfer.data import Embeddings, Filter, Interactions, Items
from recotransfer.encoders import HashingText, SentenceText, encode_items
from recotransfer.evaluation.metrics import hits, ndcg, recall
from recotransfer.evaluation.split import Split
from recotransfer.evaluation.splits import cold_items
from recotransfer.evaluation.uncertainty import interval, paired
from recotransfer.recommenders import ContentProfiles
from recotransfer.transfer import MultiTask

K = 20
RATES = (3e-4,)  # a single rate, so nothing is chosen: a fit on Beauty takes a minute


def attributes(folder: Path, items: Items) -> Interactions:
    """Brands and categories as users of the items that have them."""
    table = pd.read_csv(folder / "amazon_beauty" / "items.csv.gz", dtype=str)
    pairs = table.assign(user=table["s3rec_attributes"].fillna("").str.split())[["user", "asin"]].explode("user")
    return Interactions.from_frame(pairs.dropna(), user="user", item="asin").with_items(items.ids)


def generated() -> tuple[Items, Interactions, Interactions]:
    """Titles of six topics, and users who each keep to one; the topic is the attribute."""
    rng = np.random.default_rng(0)
    topic = np.arange(120) % 6
    items = titled(pd.Series(range(120)), pd.Series([f"topic {'abcdef'[t]} number {n}" for n, t in enumerate(topic)]))
    rows = [(u, int(i)) for u in range(60) for i in rng.choice(np.flatnonzero(topic == u % 6), 8, replace=False)]
    log = Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item"])).with_items(items.ids)
    return items, log, Interactions.from_labels([f"topic {t}" for t in topic], items.ids)


def together(purchases: Interactions, labels: Interactions) -> Interactions:
    """Relations of both kinds in one log; a prefix keeps users of different kinds apart."""
    logs = {"purchase": purchases, "attribute": labels}
    table = pd.concat(
        [
            pd.DataFrame({"user": [f"{kind} {u}" for u in log.users.take(log.user)], "item": log.items.take(log.item)})
            for kind, log in logs.items()
        ]
    )
    events = Interactions.from_frame(table, items=purchases.items)
    kind = np.repeat(np.arange(2, dtype=np.int16), [len(log) for log in logs.values()])
    return replace(events, kind=kind, kinds=tuple(logs))


def warm(log: Interactions, split: Split) -> Interactions:
    """The relations of items that have events in training."""
    known = np.zeros(len(log.items), bool)
    known[log.items.positions(split.train.items.take(np.unique(split.train.item)))] = True
    return log.select(known[log.item])


def metrics_per_user(split: Split, vectors: Embeddings, part: str) -> tuple[np.ndarray, np.ndarray]:
    """NDCG and recall per user of a part ("valid" or "test"), with its new items as candidates."""
    truth, history, only = (getattr(split, f"{part}{end}") for end in ("", "_history", "_items"))
    users = truth.users.take(np.unique(truth.user))
    model = ContentProfiles().fit(split.train, fused([vectors]))
    found = hits(model.recommend(users, K, filter=Filter(allow=only.ids), histories=history), truth)
    return ndcg(found, K), recall(found, K)


def variant(
    name: str, vectors: Embeddings, relations: Interactions | None, split: Split, epochs: int, **settings: Any
) -> dict[str, Any]:
    """A variant with the learning rate that is best on validation, and its test metrics per user."""
    start, tried = time.perf_counter(), []
    for rate in RATES if relations is not None else (None,):
        moved, report = vectors, None
        if relations is not None:
            transfer = MultiTask(learning_rate=rate, epochs=epochs, **settings).fit(vectors, relations)
            moved, report = transfer.transform(vectors), transfer.report_
        tried.append((float(metrics_per_user(split, moved, "valid")[0].mean()), rate, moved, report))
    _, rate, moved, report = max(tried, key=lambda one: one[0])
    gain, share = metrics_per_user(split, moved, "test")
    return {
        "variant": name,
        "learning_rate": rate,
        "trials": [round(one[0], 4) for one in tried],
        "weights": None if report is None else {k: round(float(v), 3) for k, v in report["weights"].items()},
        "ndcg": gain,
        "recall": share,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measured(
    items: Items, log: Interactions, labels: Interactions, vectors: Embeddings, epochs: int
) -> list[dict[str, Any]]:
    split = cold_items(log, seed=0)
    both = together(warm(log, split), warm(labels, split))
    alone = {kind: both.select(both.kind == both.kinds.index(kind)) for kind in both.kinds}
    found = [
        variant("frozen vectors", vectors, None, split, epochs),
        variant("purchase alone", vectors, alone["purchase"], split, epochs),
        variant("attribute alone", vectors, alone["attribute"], split, epochs),
        *(
            variant(f"both, {w}", vectors, both, split, epochs, weighting=w)
            for w in ("equal", "uncertainty", "gradnorm")
        ),
    ]
    rows = []
    for one in found:
        row = {key: one[key] for key in ("variant", "learning_rate", "trials", "weights", "seconds")}
        for metric in ("ndcg", "recall"):
            row[f"{metric}@{K}"] = rounded(interval(one[metric]))
            for other in found[:2]:
                if one is not other:
                    row[f"{metric}@{K} less {other['variant']}"] = rounded(paired(one[metric], other[metric]))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/multitask"), help="encoded titles")
    parser.add_argument("--tiny", action="store_true")
    a = parser.parse_args()
    facts = header()
    if a.tiny:
        items, log, labels = generated()
        vectors = encode_items(items, HashingText(dim=64)).embeddings
        print("\n".join(json.dumps(row) for row in measured(items, log, labels, vectors, 1)))
        return
    if a.data is None:
        parser.error("give --data, or --tiny")
    items, split, _ = beauty(a.data)
    log = split.known_before_test().concat(split.test)
    vectors = encode_items(items, SentenceText(), cache=a.out / "cache").embeddings
    rows = measured(items, log, attributes(a.data, items), vectors, 4)
    print("\n".join(json.dumps(row) for row in rows), flush=True)
    write_results("multitask", facts, rows)


if __name__ == "__main__":
    main()
