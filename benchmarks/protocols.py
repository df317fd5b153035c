"""Published protocols on real data, run by `recotransfer benchmark` and scored again by an independent referee.

    python benchmarks/protocols.py --data DATA_DIR --referee referee.py amazon_beauty amazon_toys citeulike_a ...

DATA_DIR holds one folder per data set. The data sets and their protocols:

    amazon_beauty, amazon_toys    next item, strict leave-one-out: the validation event is in the history of the test,
                                  but no weights are fitted on it
    citeulike_a                   items without interactions, titles only; only these items are ranked
    citeulike_a_mixed             the same items and a tenth of the other pairs held out, ranked together and apart
    movielens_small               all events after a point in time
    amazon_beauty_noise           amazon_beauty with titles shuffled between items: transfer that can only hurt

The referee is an independent implementation. It writes items, events and truth of the first three and scores their
lists again; its figures are the ones that are reported. Settings are chosen on validation, with the same number of
trials for every variant; those with brackets have fixed settings. Where items without events are ranked too,
HybridRanker is also tested on warm items alone against every variant without content: cold items must not cost it
quality there.
`results/protocols.json` keeps one row per data set and variant; `OUT/SET/benchmark/report.html` is for reading.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import RESULTS, header, write_results

from recotransfer.evaluation.uncertainty import paired

FLAGSHIP = "HybridRanker"  # tested on warm items against every variant without content

BASELINES = ["EASE", "ItemKNN", "ALS", "RidgeProfiles", "ContentProfiles", "Popularity"]
MODELS = {
    "leave-one-out": ["HybridRanker", "HybridItems", "SASRec()", "EASE as in BARS=EASE(reg=100, history_decay=0.6)",
                      "TransitionRings", *BASELINES],
    "cold": ["HybridRanker", "HybridItems", "RidgeProfiles", "ContentProfiles", "MiniLM cosine=ContentProfiles()"],
    "mixed": ["HybridRanker", "HybridItems", *BASELINES],
    "noise": ["HybridRanker", "HybridItems"],
    "time": ["HybridRanker", "HybridItems", "SASRec()", "BPR", *BASELINES],
}  # fmt: skip
PROTOCOLS = {
    "amazon_beauty": "leave-one-out",
    "amazon_toys": "leave-one-out",
    "citeulike_a": "cold",
    "citeulike_a_mixed": "mixed",
    "movielens_small": "time",
    "amazon_beauty_noise": "noise",
}


def run(*words: object) -> str:
    line = [str(w) for w in words]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(line)}\n{done.stdout}")
    return done.stdout


def prepared(name: str, a: argparse.Namespace, work: Path) -> list[object]:
    """Write the files of the protocol to `work`, and return its flags of `recotransfer benchmark`."""
    protocol = PROTOCOLS[name]
    if protocol == "time":
        return movielens(a.data / name, work)
    if protocol == "mixed":
        return mixed(a.data / "citeulike_a", work)
    cold = protocol == "cold"
    prepare = (sys.executable, a.referee, "prepare", "cold" if cold else "loo", a.data / name.removesuffix("_noise"))
    choice = ("--part",) if cold else ("--form",)
    run(*prepare, work / "valid", *choice, "valid")
    run(*prepare, work / "test", *choice, "test" if cold else "strict")
    test = work / "test"
    if cold:
        return ["--items", test / "items.csv", "--events", test / "train.csv", "--history", test / "train.csv",
                "--valid", work / "valid" / "truth.csv", "--test", test / "truth.csv",
                "--held-out-items-only", "--k", 20]  # fmt: skip
    known, last = pd.read_csv(test / "history.csv", dtype=str), pd.read_csv(test / "truth.csv", dtype=str)
    last["timestamp"] = 10**6
    if protocol == "noise":
        items = pd.read_csv(test / "items.csv", dtype=str)
        items["title"] = np.random.default_rng(0).permutation(items["title"])
        items.to_csv(test / "items.csv", index=False)
    pd.concat([known, last]).to_csv(work / "events.csv", index=False)  # the whole log: the package splits it itself
    return ["--items", test / "items.csv", "--events", work / "events.csv", "--split", "leave-last"]


def movielens(folder: Path, work: Path) -> list[object]:
    work.mkdir(parents=True, exist_ok=True)
    columns = ["movieId", "title", "genres", "plot"]
    pd.read_csv(folder / "movies.csv.gz")[columns].to_csv(work / "items.csv", index=False)
    pd.read_csv(folder / "ratings.csv.gz").drop(columns="rating").to_csv(work / "events.csv", index=False)
    columns = ["--item-column", "item=movieId", "--event-column", "user=userId", "--event-column", "item=movieId"]
    return ["--items", work / "items.csv", "--events", work / "events.csv", "--split", "time", "--refit", *columns]


def mixed(folder: Path, work: Path) -> list[object]:
    """Validation and test that each hold the pairs of cold items and a tenth of each user's other pairs."""
    work.mkdir(parents=True, exist_ok=True)
    pd.read_csv(folder / "items.csv.gz", dtype=str)[["item", "title"]].to_csv(work / "items.csv", index=False)
    pairs = pd.read_csv(folder / "interactions.csv.gz", dtype=str)
    warm = pairs[pairs["split"] == "train"]
    lot = pd.Series(np.random.default_rng(0).random(len(warm)), index=warm.index)
    place = lot.groupby(warm["user"]).rank(method="first")
    tenth = (warm.groupby("user")["item"].transform("size") / 10).round()
    part = np.select([place <= tenth, place <= 2 * tenth], ["cold_test", "cold_valid"], "train")
    pairs.loc[warm.index, "split"] = part
    for name, kept in (("train", "train"), ("valid", "cold_valid"), ("test", "cold_test")):
        pairs.loc[pairs["split"] == kept, ["user", "item"]].to_csv(work / f"{name}.csv", index=False)
    train = work / "train.csv"  # not extended by the validation pairs for the test: cold items must stay cold
    return ["--items", work / "items.csv", "--events", train, "--history", train, "--k", 20,
            "--valid", work / "valid.csv", "--test", work / "test.csv"]  # fmt: skip


def refereed(name: str, a: argparse.Namespace, work: Path, folder: Path) -> dict[str, Any]:
    """The referee's metrics of one variant's lists; empty for protocols that it does not support."""
    protocol = PROTOCOLS[name]
    if protocol in ("time", "mixed"):
        return {}
    scores = folder / "referee.json"
    kind = "cold" if protocol == "cold" else "loo"
    run(sys.executable, a.referee, "score", kind, work / "test", folder / "test-lists.parquet", "--json", scores)
    found = json.loads(scores.read_text())
    return {f"referee {metric}": [round(x, 4) for x in v] for metric, v in found.items() if isinstance(v, list)}


def warm_differences(
    variants: list[dict[str, Any]], folders: dict[str, Path], metric: str
) -> dict[str, dict[str, Any]]:
    """Variant without content -> difference of the flagship to it on warm items, paired over users."""
    figures = {}
    for variant in variants:
        if "warm" in variant["rankings"] and (variant["name"] == FLAGSHIP or not variant["content"]):
            users = pd.read_parquet(folders[variant["name"]] / "users.parquet")
            figures[variant["name"]] = users.loc[users["ranking"] == "warm", metric].to_numpy()
    if (ours := figures.pop(FLAGSHIP, None)) is None:
        return {}
    found = {name: paired(ours, theirs) for name, theirs in figures.items()}
    return {name: {f"warm {metric}: {FLAGSHIP} minus this": [round(x, 4) for x in gap]} for name, gap in found.items()}


def one_set(name: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    work, out = a.out / name / "data", a.out / name / "benchmark"
    flags = prepared(name, a, work)
    models = [word for model in a.model or MODELS[PROTOCOLS[name]] for word in ("--model", model)]
    command = [sys.executable, "-m", "recotransfer", "benchmark", *flags, *models, "--out", out]
    command += ["--trials", a.trials, "--workers", a.workers, "--threads", 1, "--cache", a.out / "cache"]
    command += ["--title", f"{name}: {PROTOCOLS[name]}", "--resume"]
    run(*command)
    results = json.loads((out / "results.json").read_text())
    folders = {json.loads(path.read_text())["name"]: path.parent for path in (out / "variants").glob("*/variant.json")}
    ran = [variant for variant in results["variants"] if variant["failed"] is None]
    warm = warm_differences(ran, folders, results["primary"])
    rows = []
    for variant in results["variants"]:
        if variant["failed"] is not None:
            rows.append({"set": name, "variant": variant["name"], "failed": variant["failed"]})
            continue
        rankings = {
            f"{ranking} {metric}": [round(value[part], 4) for part in ("value", "low", "high")]
            for ranking, found in variant["rankings"].items()
            for metric, value in found["metrics"].items()
            if metric.partition("@")[0] in ("ndcg", "recall")
        }
        against = {
            f"{found['ranking']} difference to {found['against']}": [
                round(found[part], 4) for part in ("value", "low", "high", "p_holm")
            ]
            for found in results["comparisons"]
            if found["variant"] == variant["name"]
        }
        facts = {"settings": variant["settings"], "trials": len(variant["trials"]), "valid": round(variant["valid"], 4)}
        cost = {"seconds": variant["seconds"], "memory_mib": round(variant["memory_mib"])}
        metrics = {
            **refereed(name, a, work, folders[variant["name"]]),
            **rankings,
            **against,
            **warm.get(variant["name"], {}),
        }
        rows.append({"set": name, "variant": variant["name"], **metrics, **facts, **cost})
    rows += [{"set": name, "verdict": verdict["words"], "test": verdict["test"]} for verdict in results["guard"]]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=list(PROTOCOLS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--referee", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/protocols"))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", action="append", help="variant to run instead of the default ones; repeatable")
    a = parser.parse_args()
    facts = header()
    kept = json.loads((RESULTS / "protocols.json").read_text())["rows"] if (RESULTS / "protocols.json").exists() else []
    for name in a.sets:
        rows = one_set(name, a)
        print("\n".join(json.dumps(row) for row in rows), flush=True)
        kept = [row for row in kept if row["set"] != name] + [{**row, "commit": facts["commit"]} for row in rows]
        write_results("protocols", facts, kept)


if __name__ == "__main__":
    main()
