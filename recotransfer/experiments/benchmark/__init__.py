"""Benchmarks: recommenders compared on one split, each in its own process."""

from __future__ import annotations

from recotransfer.experiments.benchmark.report import table, write_report
from recotransfer.experiments.benchmark.runner import Benchmark
from recotransfer.experiments.benchmark.variants import Variant, variants_of

__all__ = [
    "Benchmark",
    "Variant",
    "table",
    "variants_of",
    "write_report",
]
