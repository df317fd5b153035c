"""The text models that packages carry, compared in the flagship with its default settings.

    python benchmarks/text_encoders.py --data DATA_DIR [--items 1500] [--only SET ...] [--model NAME ...]

Each item's text is its title alone, without other columns, so that only the text model differs. Of each set the
`--items` items with the most users are kept. Splits, held-out events and NDCG@20 are those of everywhere.py (warm and
cold); intervals are 95% bootstrap intervals of the paired difference from the default model. Titles per second are
those of one processor second, loading and compilation not counted; bytes are those of the weights as stored on disk.
`results/text_encoders.json` is written after every model. `--tiny` uses a part of the sample shop and the default model
only, and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import header, write_results
from everywhere import SAMPLE, SETS, SPLITS, Exam, K
from numpy.typing import NDArray

from recotransfer.data import Filter, Interactions, Items
from recotransfer.encoders import SentenceText, encode_items
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.uncertainty import paired
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.task import TransferTask

MODELS = ("all-MiniLM-L6-v2", "multilingual", "all-mpnet-base-v2")
TEXT = {"library_loans": "title", "movielens_small": "title", "sample_shop": "title", "citeulike_a": "title"}


def read(name: str, data: Path, count: int) -> tuple[Items, Interactions]:
    """The `count` items with the most users, with their titles only, and the events on them."""
    tables = SETS[name](data / name)
    users = tables.events.drop_duplicates(["user", "item"])["item"].value_counts()
    titled = tables.items.dropna(subset=[TEXT[name]])
    kept = titled.loc[titled["item"].map(users).fillna(0).sort_values(ascending=False).index[:count]]
    items = read_items(kept[["item", TEXT[name]]], kinds={TEXT[name]: "text"}).data
    events = read_interactions(tables.events[tables.events["item"].isin(kept["item"])]).data
    return items, events.with_items(items.ids)


def quality(items: Items, cut: Exam, encoder: SentenceText, vectors: Any) -> NDArray[np.float64]:
    """NDCG@20 of every user with the flagship fitted on these vectors."""
    task = TransferTask(encoders=[encoder], progress=False).fit(items, cut.train, embeddings=vectors)
    asked = cut.truth.users.take(np.unique(cut.truth.user))
    only = None if cut.candidates is None else Filter(allow=cut.candidates)
    return ndcg(hits(task.recommend(asked, K, filter=only), cut.truth), K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SAMPLE.parent, help="folder of the data sets")
    parser.add_argument("--items", type=int, default=1500, help="items kept of each set")
    parser.add_argument("--only", action="append", choices=list(TEXT), help="data set; by default all")
    parser.add_argument("--model", action="append", help="text model; by default those of packages")
    parser.add_argument("--tiny", action="store_true", help="quick check, writes no results")
    a = parser.parse_args()
    if a.tiny:
        a.items, a.only, a.model = 60, ["sample_shop"], [MODELS[0]]
    facts = header()
    facts["sets"] = f"titles of the {a.items:,} items with the most users"
    print(f"sets      {facts['sets']}")

    encoders = {model: SentenceText(model=model, column="title") for model in a.model or MODELS}
    rows: list[dict[str, Any]] = []
    for name in a.only or TEXT:
        items, events = read(name, a.data, a.items)
        cuts = {split: SPLITS[split](events) for split in ("warm", "cold")}
        base: dict[str, Any] = {}
        for model, encoder in encoders.items():
            encoder.encode(["a first text"])
            start = time.process_time()
            vectors = encode_items(items, encoder, progress=False).embeddings
            speed = len(items.ids) / (time.process_time() - start)
            size = sum(path.stat().st_size for path in encoder.folder.rglob("*.safetensors"))
            found = {"titles_per_s": speed, "bytes": size}
            row = {"set": name, "items": len(items.ids), "model": model, "encoder": encoder.name}
            scores = {split: quality(items, cut, encoder, [vectors]) for split, cut in cuts.items()}
            for split, values in scores.items():
                row |= {f"{split} users": len(values), f"{split} ndcg@{K}": round(float(values.mean()), 4)}
                if base:
                    row[f"{split} minus default"] = [round(x, 4) for x in paired(values, base[split])]
            row |= {key: round(value, 1) for key, value in found.items()}
            if not base:
                base = {**scores, **found}
            row |= {f"{key} ratio": round(value / base[key], 3) for key, value in found.items()}
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items() if key != "encoder"), flush=True)
            if not a.tiny:
                write_results("text_encoders", facts, rows)


if __name__ == "__main__":
    main()
