"""Speed of exact top-k for all users against the matrix product alone, implicit and others; latency of one query.

Variants are timed in turn, so that other load on the machine affects them alike; the table gives medians and ratios.
Set OPENBLAS_NUM_THREADS=1 to silence implicit's warning: its own threads call BLAS.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import header, write_results
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from recotransfer.errors import require
from recotransfer.numerics.topk import TopK, pack_items, top_k
from recotransfer.retrieval import ExactIndex, FaissIndex, Index

Variant = Callable[[], Any]


def factors(users: int, items: int, dim: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], ...]:
    """Gaussian query and item vectors: the hardest case, because no item can be pruned by length or cluster."""
    queries = rng.standard_normal((users, dim), dtype=np.float32)
    return queries, rng.standard_normal((items, dim), dtype=np.float32)


def clustered(n: int, dim: int, rng: np.random.Generator, centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors like trained factors: with a decaying spectrum, clusters and different lengths."""
    spectrum = 1 / np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    values = centres[rng.integers(0, len(centres), n)] + 0.7 * rng.standard_normal((n, dim), dtype=np.float32)
    values *= spectrum * rng.lognormal(0, 0.35, (n, 1)).astype(np.float32)
    return values


def seen_items(users: int, items: int, rng: np.random.Generator) -> sparse.csr_array:
    """10 to 20 seen items for each user."""
    counts = rng.integers(10, 21, users)
    rows = np.repeat(np.arange(users), counts)
    data = np.ones(rows.size, np.float32)
    return sparse.csr_array((data, (rows, rng.integers(0, items, rows.size))), shape=(users, items))


def product_variants(queries: NDArray[np.float32], items: NDArray[np.float32]) -> dict[str, Variant]:
    """The float32 matrix product alone, by NumPy and by torch, in blocks that reuse one output buffer."""
    import torch

    variants: dict[str, Variant] = {}
    q, i = torch.from_numpy(queries), torch.from_numpy(items).T
    for block in (512, 1024):
        ours = np.empty((block, len(items)), np.float32)
        theirs = torch.empty((block, len(items)))

        def numpy_product(block: int = block, out: NDArray[np.float32] = ours) -> None:
            for start in range(0, len(queries), block):
                part = queries[start : start + block]
                np.matmul(part, items.T, out=out[: len(part)])

        def torch_product(block: int = block, out: Any = theirs) -> None:
            for start in range(0, len(queries), block):
                part = q[start : start + block]
                torch.matmul(part, i, out=out[: len(part)])

        variants[f"product alone, numpy, blocks of {block}"] = numpy_product
        variants[f"product alone, torch, blocks of {block}"] = torch_product
    return variants


def other_variants(
    queries: NDArray[np.float32], items: NDArray[np.float32], seen: sparse.csr_array, k: int
) -> dict[str, Variant]:
    """`implicit` with seen items excluded; flat FAISS and torch's topk without any exclusion."""
    import torch
    from implicit.cpu.als import AlternatingLeastSquares

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AlternatingLeastSquares(factors=queries.shape[1])
    model.user_factors, model.item_factors = queries, items
    matrix, everyone = sparse.csr_matrix(seen), np.arange(len(queries))
    flat = require("faiss", extra="cpu").IndexFlatIP(items.shape[1])
    flat.add(items)
    q, i = torch.from_numpy(queries), torch.from_numpy(items).T

    def implicit_recommend() -> Any:
        with threadpool_limits(1, user_api="blas"):
            return model.recommend(everyone, matrix, N=k, filter_already_liked_items=True)

    return {
        "implicit.recommend, seen excluded": implicit_recommend,
        "FAISS flat, nothing excluded": lambda: flat.search(queries, k),
        "torch product + topk, nothing excluded": lambda: [(part @ i).topk(k) for part in q.split(1024)],
    }


def medians(variants: dict[str, Variant], runs: int) -> dict[str, float]:
    """Median seconds of each variant over rounds that run all in turn; the first round is a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(runs + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(times[1:])) for name, times in taken.items()}


def wrong_rows(
    found: TopK,
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    seen: sparse.csr_array,
    mask: NDArray[np.bool_] | None,
) -> int:
    """Errors in a sample of rows, compared with a fully sorted float64 product rounded to float32."""
    wrong, k = 0, found.scores.shape[1]
    for row in np.linspace(0, len(queries) - 1, min(len(queries), 500)).astype(int):
        scores = items.astype(np.float64) @ queries[row].astype(np.float64)
        scores[seen[[row]].indices] = -np.inf
        if mask is not None:
            scores[~mask] = -np.inf
        best = np.sort(scores)[::-1][:k]
        wrong += not np.array_equal(best.astype(np.float32), found.scores[row])
        wrong += not np.array_equal(scores[found.positions[row]].astype(np.float32), found.scores[row])
    return wrong


def throughput(users: int, n: int, dim: int, k: int, runs: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    queries, items = factors(users, n, dim, rng)
    seen, mask = seen_items(users, n, rng), rng.random(n) < 0.7
    ours: dict[str, Variant] = {
        "top_k, seen excluded": lambda: top_k(queries, items, k, exclude=seen),
        "top_k, seen excluded, 70% allowed": lambda: top_k(queries, items, k, exclude=seen, mask=mask),
    }
    checked = {
        name: wrong_rows(variant(), queries, items, seen, mask if "%" in name else None)
        for name, variant in ours.items()
    }
    variants = product_variants(queries, items) | other_variants(queries, items, seen, k) | ours
    times = medians(variants, runs)
    product = min(seconds for name, seconds in times.items() if name.startswith("product"))
    implicit = times["implicit.recommend, seen excluded"]
    print(f"\n{users:,} users x {n:,} items x {dim} dims, k = {k}, medians of {runs} rounds")
    print(f"{'variant':42s} {'seconds':>8s} {'of product':>11s} {'x implicit':>11s}")
    rows = []
    for name, seconds in times.items():
        print(f"{name:42s} {seconds:8.3f} {seconds / product:11.2f} {implicit / seconds:11.2f}")
        row = {
            "variant": name,
            "seconds": seconds,
            "of_product": seconds / product,
            "times_implicit": implicit / seconds,
        }
        rows.append(row | ({"wrong_rows_of_500": checked[name]} if name in checked else {}))
    print(f"{'goals: first, then':42s} {'':8s} {'1.00, 0.50':>11s} {'2.0, 4.0':>11s}")
    print(f"exactness against float64: {sum(checked.values())} wrong rows in samples of {min(users, 500)}")
    return rows


def latency(n: int, dim: int, k: int, queries: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((500, dim), dtype=np.float32)
    items, vectors = clustered(n, dim, rng, centres), clustered(queries, dim, rng, centres)
    truth = top_k(vectors, pack_items(items), k)
    seen = seen_items(queries, n, rng)
    print(f"\none query at a time, {n:,} items x {dim} dims, k = {k}, {queries} queries, 10-20 seen items excluded")
    print(f"{'index':26s} {'build s':>8s} {'p50 ms':>8s} {'p99 ms':>8s} {'recall':>8s}   goal: p99 < 5 ms at >= .95")
    rows = []
    trials: list[tuple[str, Index, str, tuple[int, ...]]] = [
        ("exact", ExactIndex(), "", (0,)),
        ("hnsw", FaissIndex("hnsw"), "search_effort", (32, 64, 128, 256)),
        ("ivfpq", FaissIndex("ivfpq"), "probes", (16, 32, 64)),
    ]
    for kind, index, setting, efforts in trials:
        start = time.perf_counter()
        index.build(items).search(vectors[:1], k)
        built = time.perf_counter() - start
        for effort in efforts:
            if setting:
                setattr(index, setting, effort)
            found = index.search(vectors, k).positions
            recall = np.mean([np.isin(a, b).mean() for a, b in zip(found, truth.positions, strict=True)])
            taken = []
            for q in range(queries):
                start = time.perf_counter()
                index.search(vectors[q : q + 1], k, exclude=seen[[q]])
                taken.append(1e3 * (time.perf_counter() - start))
            p50, p99 = np.percentile(taken[1:], (50, 99))
            name = f"{kind} {setting} {effort}" if setting else kind
            print(f"{name:26s} {built:8.1f} {p50:8.2f} {p99:8.2f} {recall:8.3f}", flush=True)
            rows.append({"index": name, "build_s": built, "p50_ms": p50, "p99_ms": p99, "recall": float(recall)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--latency-items", type=int, default=1_000_000, help="items of the second table; 0 skips it")
    parser.add_argument("--latency-queries", type=int, default=500)
    parser.add_argument("--tiny", action="store_true", help="quick check: small sizes, no results written")
    args = parser.parse_args()
    if args.tiny:
        args.users, args.items, args.runs, args.latency_items, args.latency_queries = 300, 2_000, 2, 3_000, 20
    facts = header()
    rows = throughput(args.users, args.items, args.dim, args.k, args.runs)
    if args.latency_items:
        rows += latency(args.latency_items, args.dim, args.k, args.latency_queries)
    if not args.tiny:
        print(write_results("topk", facts, rows).name)


if __name__ == "__main__":
    main()
