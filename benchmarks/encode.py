"""Encoding speed in titles per second: `SentenceText` against sentence-transformers with its defaults, interleaved.

Run: OMP_WAIT_POLICY=PASSIVE python benchmarks/encode.py [--titles FILE.csv --column title] [--runs 5] [--tiny]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import header, write_results
from numpy.typing import NDArray

from recotransfer.encoders import SentenceText

SAMPLE = Path(__file__).parent.parent / "sample_data" / "items.csv"
GOAL, AGREEMENT = 4.0, 0.999


def read_titles(path: Path, column: str, count: int) -> list[str]:
    """`count` distinct titles in random order; if the file has fewer, numbered copies make up the rest."""
    titles = pd.read_csv(path)[column].dropna().astype(str).drop_duplicates().tolist()
    if len(titles) < count:
        rounds = -(-count // len(titles))
        titles = [title if r == 0 else f"{title}, no. {r}" for r in range(rounds) for title in titles]
    order = np.random.default_rng(0).permutation(len(titles))[:count]
    return [titles[i] for i in order]


def timed(encode: Callable[[list[str]], NDArray[np.float32]], titles: list[str]) -> tuple[float, NDArray[np.float32]]:
    start = time.perf_counter()
    vectors = encode(titles)
    return len(titles) / (time.perf_counter() - start), vectors


def variants(precisions: list[str]) -> dict[str, Callable[[list[str]], NDArray[np.float32]]]:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(SentenceText().folder), device="cpu")
    found: dict[str, Callable[[list[str]], NDArray[np.float32]]] = {
        "sentence-transformers defaults": lambda titles: library.encode(titles, show_progress_bar=False)
    }
    for precision in precisions:
        found[f"SentenceText {precision}"] = SentenceText(precision=precision).encode  # type: ignore[arg-type]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titles", type=Path, default=SAMPLE, help="CSV file of titles; the sample shop by default")
    parser.add_argument("--column", default="title")
    parser.add_argument("--count", type=int, default=2048, help="titles per run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="quick check: 64 titles, one run, no results written")
    args = parser.parse_args()
    if args.tiny:
        args.count, args.runs = 64, 1
    facts = header()
    titles = read_titles(args.titles, args.column, args.count)
    automatic = SentenceText()
    tokens = [len(t) for t in automatic.network[0].tokenizer(titles)["input_ids"]]
    facts["titles"] = f"{len(titles):,} titles, {np.mean(tokens):.1f} tokens on average, {args.runs} runs"
    print(f"titles    {facts['titles']}; auto is {automatic.resolved_precision}")
    runs: dict[str, list[float]] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    compared = variants(sorted({"float32", automatic.resolved_precision}))
    for encode in compared.values():
        encode(titles[:64])
    for _ in range(args.runs):
        for name, encode in compared.items():
            rate, vectors[name] = timed(encode, titles)
            runs.setdefault(name, []).append(rate)
    base = next(iter(compared))
    rows: list[dict[str, Any]] = []
    print(f"\n{'variant':34s}{'titles/s':>10s}{'ratio':>8s}{'goal':>6s}{'min cosine':>12s}{'mean cosine':>13s}")
    for name, rates in runs.items():
        ratio = float(np.median(np.array(rates) / np.array(runs[base])))
        near = np.einsum("nd,nd->n", vectors[name], vectors[base])
        near /= np.linalg.norm(vectors[name], axis=1) * np.linalg.norm(vectors[base], axis=1)
        row = {"variant": name, "titles_per_s": round(float(np.median(rates)), 1), "ratio": round(ratio, 2)}
        row |= {"goal": GOAL, "min_cosine": round(float(near.min()), 6), "mean_cosine": round(float(near.mean()), 6)}
        row["ratio_of_each_run"] = [round(a / b, 2) for a, b in zip(rates, runs[base], strict=True)]
        rows.append(row)
        print(
            f"{name:34s}{row['titles_per_s']:10.1f}{row['ratio']:8.2f}{GOAL:6.1f}"
            f"{row['min_cosine']:12.6f}{row['mean_cosine']:13.6f}"
        )
    if rows[-1]["min_cosine"] < AGREEMENT:
        print(f"the smallest cosine is below {AGREEMENT}: the variants do not agree")
    if not args.tiny:
        write_results("encode", facts, rows)


if __name__ == "__main__":
    main()
