"""Problems of any domain: fit, tune and evaluate; benchmarks are in `experiments.benchmark`."""

from __future__ import annotations

from recotransfer.experiments.item_splits import (
    SPLIT_PARTS,
    few_shot,
    fold_items,
    group_codes,
    named_parts,
    split_items,
    stratified_parts,
)
from recotransfer.experiments.problem import (
    LABEL_METRICS,
    Metric,
    Predictions,
    Problem,
    accuracy,
    area_under_curve,
    column,
    described,
    expected_calibration_error,
    macro_f1,
    mean_average_precision,
    mean_reciprocal_rank,
)
from recotransfer.experiments.run import Outcome, combine_outcomes, gain, run, table
from recotransfer.experiments.tuning import Tuned, lists_for, tune

__all__ = [
    "LABEL_METRICS",
    "SPLIT_PARTS",
    "Metric",
    "Outcome",
    "Predictions",
    "Problem",
    "Tuned",
    "accuracy",
    "area_under_curve",
    "column",
    "combine_outcomes",
    "described",
    "expected_calibration_error",
    "few_shot",
    "fold_items",
    "gain",
    "group_codes",
    "lists_for",
    "macro_f1",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "named_parts",
    "run",
    "split_items",
    "stratified_parts",
    "table",
    "tune",
]
