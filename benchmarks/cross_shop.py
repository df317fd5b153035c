"""Does a transfer learned in one shop help new users of another? From Amazon Toys to Beauty, and the reverse.

    python benchmarks/cross_shop.py --data DATA_DIR [--pairs toys:beauty beauty:toys] [--citeulike] [--users N]

A user of the target shop has a history of n = 1, 2 or 3 events (the first n of their log); `ContentProfiles` on mapped
MiniLM embeddings is to find the next item among all items of the shop. The maps are trained on the source shop's events
only. Settings, including the decay of histories, are chosen in the source shop: half of its regions (clusters of
vectors) stand in for the target, and the map is trained on the others. The target is scored once. Every variant is
compared with the raw embeddings, which have a decay of their own, and with embeddings whitened on the target's own
vectors, which needs no events: what a variant gains over that comes from the source's events.

The second table also trains on the events of a few target users, and tests on the other users. `--citeulike` measures
each map within one domain, on articles that nobody has saved yet. `--tiny` runs on the sample shop and writes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from common import RESULTS, header, write_results

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.encoders import HashingText, SentenceText, encode_items
from recotransfer.evaluation.metrics import hits, ndcg, recall
from recotransfer.evaluation.uncertainty import interval, paired
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.recommenders import ContentProfiles, RidgeProfiles
from recotransfer.transfer import (
    Adversarial,
    ContrastiveHead,
    Coral,
    LearnedMetric,
    MMDMap,
    RidgeMap,
    SoftThreshold,
    Transfer,
    Whitening,
)

SAMPLE = Path(__file__).parent.parent / "sample_data"
SETS = {"toys": ("amazon_toys", "s3rec_sequences.txt.gz", "s3rec_id", "textual_id"),
        "beauty": ("amazon_beauty", "sequences.txt.gz", "asin", "title")}  # fmt: skip
DECAYS = (1.0, 0.7, 0.5, 0.3)
STEPS = (1, 2, 3)
K = 10
REGIONS = 20


class Shop(NamedTuple):
    """Embeddings of a shop's items, and its log in order of time."""

    items: Embeddings
    events: Interactions


Variant = Callable[..., Embeddings]  # (source, target, **settings) -> the target's vectors


def read(name: str, a: argparse.Namespace) -> Shop:
    folder, log, key, text = SETS[name]
    table = pd.read_csv(a.data / folder / "items.csv.gz", dtype=str)
    items = Items(IdMap(f"{name} " + table["asin"]), table, {text: "text"})
    vectors = encode_items(items, SentenceText(column=text), cache=a.out / "cache").embeddings
    with gzip.open(a.data / folder / log, "rt") as lines:
        words = [line.split() for line in lines]
    size = [len(line) - 1 for line in words]
    item = IdMap(table[key]).positions([word for line in words for word in line[1:]])
    return Shop(vectors, _log(items.ids, np.repeat(np.arange(len(words)), size), item))


def _log(items: IdMap, user: Any, item: Any) -> Interactions:
    """Events in the given order, with users renumbered; the time is the position in the log."""
    users, user = np.unique(user, return_inverse=True)
    return Interactions(
        IdMap(users), items, user.astype(np.int64), item, np.ones(len(item), np.float32), np.arange(len(item)) * 1.0
    )


def part(shop: Shop, rows: Any) -> Shop:
    """The shop with only the items at these rows."""
    place = np.full(len(shop.items.ids), -1)
    place[rows] = np.arange(len(rows))
    kept = np.flatnonzero(place[shop.events.item] >= 0)
    ids = IdMap(shop.items.ids.take(rows))
    return Shop(shop.items.align(ids), _log(ids, shop.events.user[kept], place[shop.events.item[kept]]))


def halves(shop: Shop) -> tuple[Shop, Shop]:
    """Two shops made from one by assigning the clusters of its vectors to either."""
    from sklearn.cluster import KMeans

    vectors = shop.items.vectors
    region = KMeans(min(REGIONS, len(vectors) // 10), n_init=1, random_state=0).fit_predict(vectors)
    other = np.isin(region, np.random.default_rng(0).permutation(region.max() + 1)[: (region.max() + 1) // 2])
    return part(shop, np.flatnonzero(~other)), part(shop, np.flatnonzero(other))


def histories_and_next(events: Interactions, step: int, users: int | None) -> tuple[Interactions, Interactions]:
    """Histories of the first `step` events of users who have more, and the next event of each."""
    order = events.order
    place = np.arange(len(order)) - events.offsets[events.user[order]]
    enough = np.flatnonzero(np.diff(events.offsets) > step)
    if users is not None:
        enough = np.sort(np.random.default_rng(0).permutation(enough)[:users])
    chosen = np.isin(events.user[order], enough)
    return events.select(order[chosen & (place < step)]), events.select(order[chosen & (place == step)])


def measured(items: Embeddings, events: Interactions, decay: float, users: int | None) -> dict[int, dict[str, Any]]:
    """Per-user metrics by length of history."""
    out = {}
    for step in STEPS:
        histories, truth = histories_and_next(events, step, users)
        model = ContentProfiles(history_decay=decay).fit(histories, items)
        found = hits(model.recommend(truth.users.take(np.unique(truth.user)), K), truth)
        out[step] = {f"ndcg@{K}": ndcg(found, K), f"recall@{K}": recall(found, K)}
    return out


def mean_ndcg(found: Mapping[int, dict[str, Any]]) -> float:
    return float(np.mean([values[f"ndcg@{K}"].mean() for values in found.values()]))


# -- variants ----------------------------------------------------------------------------------------------------------


def own(items: Embeddings, **settings: float) -> Embeddings:
    """Embeddings whitened on themselves, without events."""
    nothing = Interactions(IdMap([]), items.ids, *(np.empty(0, t) for t in (np.int64, np.int64, np.float32)))
    return Whitening(**settings).fit(items, nothing).transform(items)


def on(base: Callable[[Embeddings], Embeddings], kind: type[Transfer]) -> Variant:
    """A variant: a transfer trained in the source shop, after `base` is applied to the vectors of each shop."""
    return lambda source, target, **s: kind(**s).fit(base(source.items), source.events).transform(base(target.items))


def together(kind: type[Transfer]) -> Variant:
    """A variant: domain adaptation, which also sees the target's whitened vectors without their events."""

    def variant(source: Shop, target: Shop, **settings: Any) -> Embeddings:
        here, there = own(source.items), own(target.items)
        both = here.concat(there)
        return kind(**settings).fit(both, source.events.with_items(both.ids)).transform(there)

    return variant


def recoloured(source: Shop, target: Shop, **settings: Any) -> Embeddings:
    """The target aligned with the source's mean and covariance (CORAL), then the metric learned in the source."""
    both = source.items.concat(target.items)
    moved = Coral().fit(both, source.events.with_items(both.ids)).transform(target.items)
    return LearnedMetric(**settings).fit(source.items, source.events).transform(moved)


def centred(items: Embeddings) -> Embeddings:
    return own(items, power=0.0)


TRAINED = {"hidden": (0, 256), "learning_rate": (0.0001,), "epochs": (3,)}
VARIANTS: dict[str, tuple[Variant, dict[str, tuple[Any, ...]]]] = {
    "raw": (lambda source, target: target.items, {}),
    "centred": (lambda source, target: centred(target.items), {}),
    "whitened": (lambda source, target, **s: own(target.items, **s), {"shrink": (0.03, 0.1, 0.3)}),
    "metric": (on(lambda items: items, LearnedMetric), {"keep": (0.0, 0.5, 0.8)}),
    "whitened, metric": (on(own, LearnedMetric), {"keep": (0.5, 0.8), "power": (0.5, 1.0)}),
    "whitened, ridge": (on(own, RidgeMap), {"dim": (64, 256), "keep": (0.5, 0.8)}),
    "whitened, contrastive": (on(own, ContrastiveHead), TRAINED),
    "coral, metric": (recoloured, {"keep": (0.5, 0.8)}),
    "whitened, mmd": (together(MMDMap), {"weight": (1.0,), "learning_rate": (0.0001,), "epochs": (2,)}),
    "whitened, adversarial": (together(Adversarial), {"weight": (0.3,), "learning_rate": (0.0001,), "epochs": (2,)}),
}


def grid(space: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def chosen(variant: Variant, space: Mapping[str, tuple[Any, ...]], source: Shop, users: int | None) -> dict[str, Any]:
    """The settings, including the decay, that do best on one half of the source shop when trained on the other."""
    inner, outer = halves(source)
    tried = []
    for settings in grid(space):
        vectors = variant(inner, outer, **settings)
        tried += [(mean_ndcg(measured(vectors, outer.events, decay, users)), settings, decay) for decay in DECAYS]
    best = max(tried, key=lambda found: found[0])
    return {"valid": round(best[0], 4), "settings": best[1], "history_decay": best[2]}


def compared(
    found: Mapping[str, dict[int, dict[str, Any]]], against: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]]:
    """Per variant one row per history length: means and differences to the ablations, with intervals."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, steps in found.items():
        for step, values in steps.items():
            row: dict[str, Any] = {"variant": name, "history": step, "users": len(values[f"ndcg@{K}"])}
            for metric, mine in values.items():
                row[metric] = [round(x, 4) for x in interval(mine)]
                for other in against:
                    if other in found and other != name:
                        row[f"{metric} over {other}"] = [round(x, 5) for x in paired(mine, found[other][step][metric])]
            rows.setdefault(name, []).append(row)
    return rows


def zero_shot(source: Shop, target: Shop, a: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    found, facts = {}, {}
    for name, (variant, space) in VARIANTS.items():
        if a.variants and name not in a.variants:
            continue
        facts[name] = chosen(variant, space, source, a.valid_users)
        vectors = variant(source, target, **facts[name]["settings"])
        found[name] = measured(vectors, target.events, facts[name]["history_decay"], a.users)
        shown = " ".join(f"{found[name][step][f'ndcg@{K}'].mean():.4f}" for step in STEPS)
        print(f"{name:24s}{shown}  {facts[name]}", flush=True)
    rows = compared(found, ("raw", "whitened"))
    return [{**row, **facts[name]} for name, steps in rows.items() for row in steps], facts


# -- a few events of the target ----------------------------------------------------------------------------------------


def adapted(source: Shop, target: Shop, sample: int, thresholds: tuple[float, ...]) -> dict[str, Embeddings]:
    """Embeddings of the target by training data: none, the source, a sample of the target's users, or both."""
    here, there = own(source.items), own(target.items)
    metric = {"keep": 0.5}
    learn = target.events.select(target.events.user < sample)
    old = LearnedMetric(**metric).fit(here, source.events)
    out = {
        "whitened": there,
        "source": old.transform(there),
        "target": LearnedMetric(**metric).fit(there, learn).transform(there),
    }
    for threshold in thresholds:
        soft = SoftThreshold(source=old, threshold=threshold).fit(there, learn)
        out[f"soft threshold {threshold}"] = soft.transform(there)
    return out


def few_events(source: Shop, target: Shop, a: argparse.Namespace, decay: float) -> list[dict[str, Any]]:
    rows = []
    inner, outer = (_shuffled(shop) for shop in halves(source))
    target = _shuffled(target)
    for sample in a.samples:
        rest = _after(outer, sample)
        variants = adapted(inner, outer, sample, (0.003, 0.01, 0.03, 0.1))
        tried = {n: mean_ndcg(measured(v, rest, decay, a.valid_users)) for n, v in variants.items() if "soft" in n}
        threshold = float(max(tried, key=lambda name: tried[name]).split()[-1])
        vectors, rest = adapted(source, target, sample, (0.0, threshold)), _after(target, max(a.samples))
        found = {name: measured(items, rest, decay, a.users) for name, items in vectors.items()}
        soft = f"soft threshold {threshold}"
        found["soft threshold"] = found.pop(soft)
        found["target, threshold 0"] = found.pop("soft threshold 0.0")
        for name, steps in compared(found, ("whitened", "source", "target", "target, threshold 0")).items():
            rows += [{**row, "sample": sample, "threshold": threshold} for row in steps]
            print(sample, f"{name:24s}" + " ".join(f"{row[f'ndcg@{K}'][0]:.4f}" for row in steps), flush=True)
    return rows


def _shuffled(shop: Shop) -> Shop:
    """The shop with its users in random order, so that the first ones are a random sample."""
    turn = np.random.default_rng(0).permutation(len(shop.events.users))
    return Shop(shop.items, _log(shop.items.ids, turn[shop.events.user], shop.events.item))


def _after(shop: Shop, sample: int) -> Interactions:
    kept = shop.events.user >= sample
    return _log(shop.items.ids, shop.events.user[kept], shop.events.item[kept])


# -- within one domain -------------------------------------------------------------------------------------------------

CITE: dict[str, tuple[type[Transfer] | None, dict[str, tuple[Any, ...]]]] = {
    "raw": (None, {}),
    "centred": (Whitening, {"power": (0.0,)}),
    "Whitening": (Whitening, {"shrink": (0.1, 0.5, 1.0)}),
    "RidgeMap": (RidgeMap, {"dim": (128, 256), "keep": (0.0, 0.5)}),
    "LearnedMetric": (LearnedMetric, {"reg": (0.01, 0.1), "keep": (0.0, 0.3)}),
    "ContrastiveHead": (ContrastiveHead, {"hidden": (0, 512), "epochs": (4,)}),
}


def citeulike(a: argparse.Namespace) -> list[dict[str, Any]]:
    """NDCG@20 and recall@20 on articles that nobody has saved; settings are chosen on `cold_valid`."""
    table = pd.read_csv(a.data / "citeulike_a" / "items.csv.gz", dtype=str)
    items = Items(IdMap(table["item"]), table, {"title": "text"})
    vectors = encode_items(items, SentenceText(), cache=a.out / "cache").embeddings
    log = pd.read_csv(a.data / "citeulike_a" / "interactions.csv.gz", dtype=str)
    users = IdMap(log["user"].unique())
    cut = {p: Interactions.from_frame(f, users=users, items=items.ids) for p, f in log.groupby("split")}
    found, rows = {}, []
    for name, (kind, space) in CITE.items():
        tried = []
        for settings in grid(space):
            mapped = vectors if kind is None else kind(**settings).fit(vectors, cut["train"]).transform(vectors)
            for model in (ContentProfiles(), RidgeProfiles()):
                model.fit(cut["train"], mapped)
                tried.append((_cold(model, cut["cold_valid"])["ndcg@20"].mean(), settings, model))
        for label in ("ContentProfiles", "RidgeProfiles"):
            best = max((t for t in tried if type(t[2]).__name__ == label), key=lambda t: t[0])
            found[name, label] = _cold(best[2], cut["cold_test"])
            row = {
                "set": "citeulike_a",
                "variant": name,
                "model": label,
                "settings": best[1],
                "valid": round(best[0], 4),
            }
            for metric, values in found[name, label].items():
                row[metric] = [round(x, 4) for x in interval(values)]
                row[f"{metric} over raw"] = [round(x, 5) for x in paired(values, found["raw", label][metric])]
            rows.append(row)
            print(f"{name:18s}{label:18s}{row['ndcg@20']} {best[1]}", flush=True)
    return rows


def _cold(model: Any, truth: Interactions) -> dict[str, Any]:
    allow = Filter(allow=truth.items.take(np.unique(truth.item)))
    lists = hits(model.recommend(truth.users.take(np.unique(truth.user)), 20, filter=allow), truth)
    return {"ndcg@20": ndcg(lists, 20), "recall@20": recall(lists, 20)}


def sample_shop() -> Shop:
    items = read_items(SAMPLE / "items.csv").data
    events = read_interactions(SAMPLE / "events.csv", items=items.ids).data
    vectors = encode_items(items, HashingText(dim=64)).embeddings
    return Shop(vectors, _log(items.ids, events.user[events.order], events.item[events.order]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/cross_shop"), help="cached vectors")
    parser.add_argument("--pairs", nargs="*", default=["toys:beauty", "beauty:toys"], help="SOURCE:TARGET")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="run these only")
    parser.add_argument("--citeulike", action="store_true")
    parser.add_argument("--users", type=int, help="users of the target to test on; all by default")
    parser.add_argument("--valid-users", type=int, default=2000)
    parser.add_argument(
        "--samples", type=int, nargs="*", default=[100, 500, 2000], help="numbers of target users to train on"
    )
    parser.add_argument("--tiny", action="store_true", help="quick check: the sample shop, no results written")
    a = parser.parse_args()
    if not a.tiny and not a.data:
        parser.error("give the data folder with --data, or use --tiny")
    facts = header()
    if a.tiny:
        a.variants, a.users, a.valid_users, a.samples = ["raw", "whitened", "whitened, metric"], 100, 100, [20]
        source, target = halves(sample_shop())
        zero_shot(source, target, a)
        return
    for pair in a.pairs:
        source, target = (read(name, a) for name in pair.split(":"))
        print(f"\n{pair}: NDCG@{K} after {STEPS} events")
        found, chosen_settings = zero_shot(source, target, a)
        rows = [{"set": pair, "table": "zero-shot", **row} for row in found]
        publish(facts, pair, rows)
        if a.samples and "whitened" in chosen_settings:
            decay = chosen_settings["whitened"]["history_decay"]
            rows += [{"set": pair, "table": "few events", **row} for row in few_events(source, target, a, decay)]
            publish(facts, pair, rows)
    if a.citeulike:
        publish(facts, "citeulike_a", citeulike(a))


def publish(facts: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of one data set in the results file."""
    path = RESULTS / "cross_shop.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in kept if row["set"] != name]
    write_results("cross_shop", facts, kept + [{**row, **{k: facts[k] for k in ("commit", "command")}} for row in rows])


if __name__ == "__main__":
    main()
