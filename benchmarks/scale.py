"""Batch recommendations for all users at three sizes: time, peak memory, and how both grow.

    python benchmarks/scale.py                       # profiles on 64 dims, up to 1,000,000 items and 200,000 users
    python benchmarks/scale.py --recommender HybridItems

Items are synthetic unit vectors in clusters, and each user has a few items of one cluster; quality is not measured.
Every size runs in its own process, so that its peak memory is its own. Memory is that of the whole process:
interpreter, libraries, vectors, events and the block being scored.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import header, write_results

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.experiments.benchmark.work import peak_memory_mib
from recotransfer.recommenders import Recommender
from recotransfer.registry import recommenders
from recotransfer.serving.batch import BatchJob

SIZES = ((250_000, 50_000), (500_000, 100_000), (1_000_000, 200_000))
TINY = ((400, 100), (800, 200))


def synthetic(n_items: int, n_users: int, dim: int, rng: np.random.Generator) -> tuple[Interactions, Embeddings]:
    clusters = max(8, n_items // 2_000)
    centres = rng.normal(size=(clusters, dim)).astype(np.float32)
    member = rng.integers(clusters, size=n_items)
    vectors = centres[member]
    vectors += 0.7 * rng.standard_normal((n_items, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    by_cluster = np.argsort(member, kind="stable")
    start = np.searchsorted(member[by_cluster], np.arange(clusters + 1))
    events = rng.integers(4, 17, size=n_users)
    user = np.repeat(np.arange(n_users), events)
    taste = np.repeat(rng.integers(clusters, size=n_users), events)
    width = np.maximum(start[taste + 1] - start[taste], 1)
    skewed = (rng.random(len(user)) ** 2 * width).astype(np.int64)
    item = by_cluster[np.minimum(start[taste] + skewed, n_items - 1)]
    clock = np.arange(len(user), dtype=np.float64)
    ids = IdMap(np.arange(n_items))
    log = Interactions(IdMap(np.arange(n_users)), ids, user, item, np.ones(len(user), np.float32), clock)
    return log, Embeddings(ids, vectors)


def one_size(name: str, n_items: int, n_users: int, dim: int, k: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    log, vectors = synthetic(n_items, n_users, dim, rng)
    settings = {"neighbours": 50} if name == "HybridItems" else {}
    start = time.perf_counter()
    model: Recommender = recommenders.find(name)(**settings).fit(log, vectors)
    fitted = time.perf_counter() - start
    after_fit = peak_memory_mib()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        job = BatchJob(Path(folder) / "recs", k=k, progress=sys.stderr.isatty())
        manifest = job.run(model, model="benchmark")
        batch = time.perf_counter() - start
    return {
        "items": n_items,
        "users": n_users,
        "events": len(log),
        "fit_s": round(fitted, 2),
        "batch_s": round(batch, 3),
        "users_per_s": round(n_users / batch),
        "us_per_user_and_million_items": round(1e6 * batch / n_users / n_items * 1e6),
        "peak_mib_after_fit": round(after_fit),
        "peak_mib": round(peak_memory_mib()),
        "shards": len(manifest["shards"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recommender", default="ContentProfiles", help="name of the recommender")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="quick check: small sizes, no results written")
    parser.add_argument("--one", type=int, nargs=2, metavar=("ITEMS", "USERS"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(one_size(a.recommender, *a.one, a.dim, a.k)))
        return
    facts = header()
    rows = []
    for n_items, n_users in TINY if a.tiny else SIZES:
        line = [sys.executable, __file__, "--one", str(n_items), str(n_users), "--recommender", a.recommender]
        line += ["--dim", str(a.dim), "--k", str(a.k)]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
    first, last = rows[0], rows[-1]
    growth = (last["items"] / first["items"]) * (last["users"] / first["users"])
    print(f"users x items grew {growth:.0f} times, batch time {last['batch_s'] / first['batch_s']:.1f} times, "
          f"peak memory {last['peak_mib'] / first['peak_mib']:.2f} times; goal: peak below 4,096 MiB")  # fmt: skip
    if not a.tiny:
        print(f"written: {write_results(f'scale_{a.recommender}', facts, rows).name}")


if __name__ == "__main__":
    main()
