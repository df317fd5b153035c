"""How well transferability scores, which need no training, predict which encoder gives the best recommendations.

    python benchmarks/transferability.py --data DATA_DIR --referee referee.py amazon_beauty amazon_toys citeulike_a

DATA_DIR holds one folder per data set; the referee prepares its validation part, and the test is not used. Several
encoders, two of them meaningless on purpose, are scored on the training events; then `HybridItems` (default settings)
and `ContentProfiles` are fitted with each and evaluated on the validation events. The table ends with Spearman's rank
correlation over the encoders. `--tiny` runs on a part of the sample shop.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from common import header, write_results
from numpy.typing import NDArray
from scipy import sparse, stats

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.diagnostics import logme, neighbour_agreement
from recotransfer.encoders import HashingText, SentenceText, encode_items, fuse
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.numerics.vectors import reciprocal
from recotransfer.recommenders import ContentProfiles, HybridItems, Recommender

SAMPLE = Path(__file__).parent.parent / "sample_data"
COLD = {"citeulike_a"}
TEXT = ("title", "textual_id", "tags", "description")
SCORES = ("neighbour agreement", "logme")


class OneBehaviour(HybridItems):
    """`HybridItems` that computes its behaviour part, which needs no content, once for all encoders of a data set."""

    solved: ClassVar[list[Any]] = []

    def _behaviour(self, events: Interactions) -> Any:
        if not self.solved:
            self.solved.append(super()._behaviour(events))
        return self.solved[0]


MODELS: dict[str, Callable[[], Recommender]] = {"HybridItems": OneBehaviour, "ContentProfiles": ContentProfiles}


class Data(NamedTuple):
    """A split data set; only the items of `allow` are ranked, or all if it is None."""

    items: Items
    train: Interactions
    valid: Interactions
    allow: IdMap | None


def read(folder: Path) -> Data:
    items = read_items(folder / "items.csv", kinds=dict.fromkeys(_text_columns(folder / "items.csv"), "text")).data
    train = read_interactions(folder / "train.csv", items=items.ids).data
    valid = read_interactions(folder / "truth.csv", items=items.ids, users=train.users).data
    candidates = folder / "candidates.csv"
    return Data(items, train, valid, read_items(candidates).data.ids if candidates.exists() else None)


def _text_columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [name for name in next(lines).strip().split(",") if name in TEXT]


def sample_shop() -> Data:
    items = read_items(pd.read_csv(SAMPLE / "items.csv", nrows=150)).data
    train, valid = hold_out_last(read_interactions(SAMPLE / "events.csv", items=items.ids).data)
    return Data(items, train, valid, None)


def prepared(name: str, a: argparse.Namespace) -> Data:
    """The validation part of a data set as the referee prepares it, with all text columns."""
    choice = ("cold", "--part") if name in COLD else ("loo", "--form")
    words = [a.referee, "prepare", choice[0], a.data / name, a.out / name, choice[1], "valid", "--text", "all"]
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return read(a.out / name)


def encoders(items: Items, cache: Path) -> dict[str, Embeddings]:
    """Name -> embeddings, centred and of unit length, of good, poor and meaningless encoders."""
    columns = [name for name in TEXT if name in items.of_kind("text")]
    parts = [encode_items(items, SentenceText(column=name), cache=cache).embeddings for name in columns]
    first, rng = parts[0], np.random.default_rng(0)
    words = encode_items(items, HashingText(column=columns[0])).embeddings
    text = [str(value or "") for value in items.columns[columns[0]]]
    shuffled = rng.permutation(len(items))
    noise = rng.normal(size=first.vectors.shape).astype(np.float32)
    found = {
        "MiniLM": first,
        "MiniLM, 64 principal components": _with(first, principal(first.vectors, 64)),
        "MiniLM, 16 principal components": _with(first, principal(first.vectors, 16)),
        "TF-IDF, 300 singular vectors": _with(first, tfidf(text, 300)),
        "hashed words": words,
        "MiniLM, items shuffled": Embeddings(items.ids, first.vectors[shuffled], present=first.has_content[shuffled]),
        "random": _with(first, noise),
    }
    if len(parts) > 1:
        found[f"MiniLM of {columns[1]}"] = parts[1]
    return {name: fuse([part]) for name, part in found.items()}


def _with(like: Embeddings, vectors: NDArray[np.float32]) -> Embeddings:
    return Embeddings(like.ids, vectors, present=like.has_content)


def principal(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA

    return PCA(dim, random_state=0).fit_transform(vectors)


def tfidf(text: list[str], dim: int) -> NDArray[np.float32]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32).fit_transform(text)
    return TruncatedSVD(min(dim, table.shape[1] - 1), random_state=0).fit_transform(table)


def behaviour(train: Interactions, dim: int = 32) -> NDArray[np.float64]:
    """(items, dim) scaled left singular vectors of the item-user matrix with unit rows: what content is to predict."""
    matrix = train.matrix().T.tocsr()
    matrix.data[:] = 1
    length = np.sqrt(np.asarray(matrix.sum(axis=1)).ravel())
    unit = sparse.diags_array(reciprocal(length)) @ matrix
    start = np.random.default_rng(0).normal(size=min(unit.shape))
    left, size, _ = sparse.linalg.svds(unit.astype(np.float64), k=min(dim, min(unit.shape) - 1), v0=start)
    return np.asarray(left * size)


def transferability_scores(items: Embeddings, data: Data, factors: NDArray[np.float64]) -> dict[str, Any]:
    start = time.perf_counter()
    agreement = neighbour_agreement(items, data.train)
    middle = time.perf_counter()
    rows = np.flatnonzero(factors.any(axis=1) & items.has_content)
    evidence = logme(items.vectors[rows], factors[rows])
    seconds = {"neighbour agreement": middle - start, "logme": time.perf_counter() - middle}
    values = {"neighbour agreement": round(agreement, 3), "logme": round(evidence, 4)}
    return {**values, **{f"{name} s": round(value, 2) for name, value in seconds.items()}}


def measured(items: Embeddings, data: Data, k: int) -> dict[str, Any]:
    users = data.valid.users.take(np.unique(data.valid.user))
    filter = None if data.allow is None else Filter(allow=data.allow.ids)
    out: dict[str, Any] = {}
    for name, make in MODELS.items():
        found = make().fit(data.train, items).recommend(users, k, filter=filter)
        out[name] = round(float(ndcg(hits(found, data.valid), k).mean()), 5)
    return out


def one_set(name: str, data: Data, cache: Path) -> list[dict[str, Any]]:
    k = 20 if name in COLD else 10
    OneBehaviour.solved.clear()
    vectors, factors = encoders(data.items, cache), behaviour(data.train)
    rows = []
    columns = (*SCORES, *MODELS)
    print(f"\n{name}, NDCG@{k} on validation\n{'':34s}" + "".join(f"{column:>21s}" for column in columns))
    for encoder, items in vectors.items():
        rows.append({"set": name, "encoder": encoder, "k": k} | transferability_scores(items, data, factors))
        rows[-1] |= measured(items, data, k)
        print(f"{encoder:34s}" + "".join(f"{rows[-1][column]:21.4f}" for column in columns), flush=True)
    orders = []
    for score in SCORES:
        order = {
            model: round(float(stats.spearmanr([r[score] for r in rows], [r[model] for r in rows]).statistic), 3)
            for model in MODELS
        }
        print(f"{'Spearman of ' + score:76s}" + "".join(f"{value:21.3f}" for value in order.values()))
        orders.append({"set": name, "spearman of": score, **order})
    return rows + orders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="folders of DATA_DIR")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--referee", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("out/transferability"), help="prepared sets and cached vectors"
    )
    parser.add_argument("--tiny", action="store_true", help="a part of the sample shop; nothing written to results/")
    a = parser.parse_args()
    if not a.tiny and not (a.sets and a.data and a.referee):
        parser.error("give the data sets, --data and --referee, or use --tiny")
    facts = header()
    if a.tiny:
        one_set("sample shop", sample_shop(), a.out / "cache")
        return
    rows: list[dict[str, Any]] = []
    for name in a.sets:
        rows += one_set(name, prepared(name, a), a.out / "cache")
        print(f"written: {write_results('transferability', facts, rows).name}")


if __name__ == "__main__":
    main()
