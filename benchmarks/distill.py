"""Students distilled from MiniLM: their speed and their quality on new items, relative to the teacher.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/distill.py --data DATA_DIR --referee referee.py

DATA_DIR holds `citeulike_a`. The referee, an independent implementation, writes the items, events and truth, and scores
the lists again; its figures are the ones that are reported. Students are trained on the titles of items with
interactions ("warm"); one variant sees the titles of the whole catalogue. Quality is NDCG@20 and recall@20 on items
without interactions, by cosine to a user's mean vector (ContentProfiles) and by HybridItems, whose settings are chosen
on validation for each variant, with the same number of trials. A ratio is the ratio of the means, with a bootstrap
interval over users. Speed is measured on one thread, with the variants interleaved. Ablations: hashed words, and word
vectors that are not trained on the texts (Model2Vec).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from common import header, write_results

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.encoders import Encoder, Fusion, HashingText, SentenceText, StaticText, encode_items
from recotransfer.encoders.static import write_static
from recotransfer.evaluation.metrics import hits, ndcg, recall
from recotransfer.evaluation.uncertainty import resampled
from recotransfer.experiments import tune
from recotransfer.recommenders import ContentProfiles, HybridItems, Recommender
from recotransfer.task import TransferTask
from recotransfer.transfer import Distil, DistilStatic

K, DIM, GOAL_RATE, GOAL_QUALITY = 20, 192, 50, 0.95
TEACHER = "MiniLM (teacher)"


class Fold(NamedTuple):
    """Validation or test: the training events, the truth, and the candidates among which it is to be found."""

    folder: Path
    items: Items
    train: Interactions
    truth: Interactions
    candidates: list[str]


def prepared(a: argparse.Namespace, part: str) -> Fold:
    folder = a.out / part
    words = [sys.executable, a.referee, "prepare", "cold", a.data / "citeulike_a", folder, "--part", part]
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    table = pd.read_csv(folder / "items.csv", dtype=str)
    ids = IdMap(table["item"])
    train, truth = (
        Interactions.from_frame(pd.read_csv(folder / f"{name}.csv", dtype=str), items=ids)
        for name in ("train", "truth")
    )
    candidates = pd.read_csv(folder / "candidates.csv", dtype=str)["item"].tolist()
    return Fold(folder, Items(ids, table[["title"]], {"title": "text"}), train, truth, candidates)


def related(items: Items, train: Interactions) -> Items:
    """The items with interactions."""
    return chosen(items, np.flatnonzero(np.bincount(train.item, minlength=len(items))))


def chosen(items: Items, rows: Any) -> Items:
    return Items(IdMap(items.ids.take(rows)), items.columns.iloc[rows].reset_index(drop=True), items.kinds)


def model2vec(teacher: Encoder, words: Sequence[str], folder: Path) -> StaticText:
    """Model2Vec (Tulkens and van Dongen, 2024): single words encoded by the teacher, reduced by PCA, weighted by rank.

    `words` are sorted from the most to the least frequent. The layers after the table are zero.
    """
    vectors = teacher.encode([word.removeprefix("##") for word in words])
    vectors -= vectors.mean(axis=0)
    dim = min(DIM, vectors.shape[1])
    table = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:dim].T
    share = 1 / (np.arange(len(words)) + 2)
    share /= share.sum()
    table *= (1e-3 / (1e-3 + share))[:, None]
    empty = {"own": (dim, 1), "before": (dim, 1), "bias": (1,), "in": (dim + 1, 1), "in_bias": (1,)}
    rest = {name: np.zeros(shape) for name, shape in {**empty, "out": (1, dim), "out_bias": (dim,)}.items()}
    write_static(folder, words, {"table": table, **rest})
    return StaticText(model=folder)


def by_frequency(entries: Sequence[str], student: StaticText, items: Items) -> list[str]:
    rows = student.vocabulary.rows([text for text in student.values(items) if text is not None])
    return [entries[i] for i in np.argsort(-np.bincount(rows.found, minlength=len(entries)), kind="stable")]


def students(teacher: SentenceText, fold: Fold, a: argparse.Namespace) -> tuple[dict[str, Encoder], dict[str, Any]]:
    """The variants by name, and the training cost of each."""
    warm, costs = related(fold.items, fold.train), {}
    variants: dict[str, Encoder] = {TEACHER: teacher, "hashed words (ablation)": HashingText()}

    def learn(name: str, tuner: Any, encoder: Encoder, items: Items) -> Any:
        start = time.perf_counter()
        variants[name] = tuner.tune(encoder, items, fold.train)
        report = tuner.report_
        costs[name] = {
            "seconds to learn": round(time.perf_counter() - start, 1),
            "epochs": report["curve"][-1]["epoch"],
            "best epoch": report["best"],
            "held-out curve": [None if p["valid"] is None else round(p["valid"], 4) for p in report["curve"]],
        }
        print(name, json.dumps(costs[name]), flush=True)
        return variants[name]

    static = learn("StaticText, warm titles", DistilStatic(folder=a.out / "static-warm"), teacher, warm)
    words = by_frequency(static.vocabulary.entries, static, warm)
    variants["Model2Vec, warm titles (ablation)"] = model2vec(teacher, words, a.out / "model2vec")
    if "all" not in a.skip:
        learn("StaticText, all titles", DistilStatic(folder=a.out / "static-all"), teacher, fold.items)
    if "layers" not in a.skip:
        tuner = Distil(folder=a.out / "layers", layers=3, epochs=a.epochs)
        learn("MiniLM, 3 of 6 layers, warm titles", tuner, teacher, warm)
    return variants, costs


# -- measures ----------------------------------------------------------------------------------------------------------


def rates(variants: dict[str, Encoder], texts: list[str], count: int, runs: int) -> dict[str, list[float]]:
    """Titles per second of each variant in each run; slow variants encode `count` titles, static ones all."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for encoder in variants.values():
        encoder.encode(texts[:64])
    for _ in range(runs):
        for name, encoder in variants.items():
            part = texts if isinstance(encoder, StaticText) else texts[:count]
            start = time.perf_counter()
            encoder.encode(part)
            found[name].append(len(part) / (time.perf_counter() - start))
    return found


def hybrid(vectors: Embeddings, valid: Fold, trials: int, journal: Path) -> HybridItems:
    """HybridItems with the settings that validation chooses for these vectors."""
    chosen = tune(
        TransferTask(HybridItems()), valid.items, valid.train, valid=valid.truth, allow=valid.candidates,
        trials=trials, k=K, embeddings=[vectors], journal=journal,
    )  # fmt: skip
    return HybridItems(**chosen.params)


def quality(vectors: Embeddings, model: Recommender, fold: Fold, a: argparse.Namespace) -> dict[str, Any]:
    """Per-user NDCG and recall, and the referee's figures."""
    embeddings = Fusion().fit([vectors]).transform([vectors])
    users = fold.truth.users.ids
    lists = model.fit(fold.train, embeddings).recommend(users, K, filter=Filter(allow=fold.candidates))
    found = hits(lists, fold.truth)
    out: dict[str, Any] = {"ndcg": ndcg(found, K), "recall": recall(found, K)}
    lists.to_frame().to_parquet(fold.folder / "lists.parquet")
    scores = fold.folder / "referee.json"
    words = [sys.executable, a.referee, "score", "cold", fold.folder, fold.folder / "lists.parquet", "--json", scores]
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    said = json.loads(scores.read_text())
    out["referee"] = {name: [round(x, 4) for x in said[name]] for name in (f"ndcg@{K}", f"recall@{K}")}
    return out


def share(mine: Any, theirs: Any) -> list[float]:
    """Ratio of two means over users, with a 95% bootstrap interval."""
    drawn = resampled(lambda rows: float(mine[rows].mean() / theirs[rows].mean()), np.arange(len(mine)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [round(float(x), 4) for x in (mine.mean() / theirs.mean(), low, high)]


def compared(variants: dict[str, Encoder], valid: Fold, test: Fold, a: argparse.Namespace) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {name: {} for name in variants}
    bases: dict[str, dict[str, Any]] = {}
    for name, encoder in variants.items():
        vectors = encode_items(test.items, encoder, cache=a.out / "cache", progress=False).embeddings
        journal = a.out / f"trials-{vectors.source.replace('/', '-')}.json"
        settled = hybrid(vectors, valid, a.trials, journal)
        out[name] = {"HybridItems settings": settled.params()}
        for label, model, fold in (
            ("ContentProfiles valid", ContentProfiles(), valid),
            ("ContentProfiles", ContentProfiles(), test),
            ("HybridItems valid", settled, valid),
            ("HybridItems", settled, test),
        ):
            found = quality(vectors, model, fold, a)
            base = bases.setdefault(label, found)  # the teacher comes first
            out[name] |= {f"{label} {metric}": value for metric, value in found["referee"].items()}
            for metric in ("ndcg", "recall"):
                out[name][f"{label} {metric} / teacher"] = share(found[metric], base[metric])
        print(name, json.dumps(out[name]), flush=True)
    return out


def bytes_of(encoder: Encoder) -> int | None:
    folder = getattr(encoder, "folder", None) or getattr(encoder, "model", None)
    return None if folder is None else sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))


def generated() -> Items:
    """A small catalogue of random titles."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("lin", "mor", "tek", "sul") for b in ("a", "on", "ip", "ers", "um")]
    titles = [" ".join(rng.choice(words, rng.integers(2, 7))) for _ in range(300)]
    return Items(IdMap(np.arange(len(titles))), pd.DataFrame({"title": titles}), {"title": "text"})


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'variant':44s}{'titles/s':>10s}{'ratio':>8s}")
    for row in rows:
        print(f"{row['variant']:44s}{row['titles_per_s']:10.0f}{row['rate / teacher']:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--referee", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/distill"))
    parser.add_argument("--count", type=int, default=1024, help="titles per run of the slow variants")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the student with fewer layers")
    parser.add_argument("--trials", type=int, default=8, help="trials of HybridItems' settings per variant")
    parser.add_argument("--skip", nargs="*", choices=["all", "layers"], default=[], help="students to leave out")
    parser.add_argument(
        "--tiny", action="store_true", help="quick check: speed on generated titles, no results written"
    )
    a = parser.parse_args()
    facts = header()
    import torch

    torch.set_num_threads(1)
    if a.tiny:
        items = generated()
        with tempfile.TemporaryDirectory() as folder:
            tuner = DistilStatic(folder=folder, dim=32, width=8, hidden=16, made_up=200, epochs=2, batch_size=64)
            variants: dict[str, Encoder] = {TEACHER: HashingText(), "StaticText": tuner.tune(HashingText(), items)}
            report(variants, rates(variants, items.columns["title"].tolist(), len(items), 1), {}, {})
        return
    if a.data is None or a.referee is None:
        parser.error("give --data and --referee, or --tiny")
    valid, test = prepared(a, "valid"), prepared(a, "test")
    variants, costs = students(SentenceText(), test, a)
    texts = test.items.columns["title"].dropna().tolist()
    speed = rates(variants, texts, a.count, a.runs)
    rows = report(variants, speed, compared(variants, valid, test, a), costs)
    write_results("distill", {**facts, "goals": {"rate": GOAL_RATE, "quality": GOAL_QUALITY}}, rows)


def report(
    variants: dict[str, Encoder], speed: dict[str, list[float]], found: dict[str, Any], costs: dict[str, Any]
) -> list[dict[str, Any]]:
    base = np.array(speed[TEACHER])
    rows = []
    for name, encoder in variants.items():
        ratio = np.array(speed[name]) / base
        row = {
            "variant": name,
            "titles_per_s": round(float(np.median(speed[name])), 1),
            "rate / teacher": round(float(np.median(ratio)), 1),
            "ratio_of_each_run": [round(float(x), 1) for x in ratio],
            "weights_bytes": bytes_of(encoder),
        }
        rows.append({**row, **found.get(name, {}), **costs.get(name, {})})
    show(rows)
    return rows


if __name__ == "__main__":
    main()
