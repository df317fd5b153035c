"""Metrics of ranked lists, labels and generated text; of boxes and masks in `detection`."""

from __future__ import annotations

from recotransfer.evaluation.metrics.classification import calibration_error, f1, roc_auc
from recotransfer.evaluation.metrics.detection import (
    EDGES,
    Matches,
    box_matches,
    box_precision,
    dice,
    intersection_over_union,
)
from recotransfer.evaluation.metrics.lists import (
    average_popularity,
    calibration,
    coverage,
    gini,
    intra_list_diversity,
    novelty,
    serendipity,
)
from recotransfer.evaluation.metrics.ranking import (
    POPULARITY_BUCKET_NAMES,
    POPULARITY_BUCKETS,
    Hits,
    Ranks,
    auc,
    average_precision,
    hit_rate,
    hits,
    mrr,
    ndcg,
    popularity_bucket,
    popularity_counts,
    precision,
    rank_metrics,
    ranks,
    recall,
)
from recotransfer.evaluation.metrics.text import bleu, bleu_gain

__all__ = [
    "EDGES",
    "POPULARITY_BUCKETS",
    "POPULARITY_BUCKET_NAMES",
    "Hits",
    "Matches",
    "Ranks",
    "auc",
    "average_popularity",
    "average_precision",
    "bleu",
    "bleu_gain",
    "box_matches",
    "box_precision",
    "calibration",
    "calibration_error",
    "coverage",
    "dice",
    "f1",
    "gini",
    "hit_rate",
    "hits",
    "intersection_over_union",
    "intra_list_diversity",
    "mrr",
    "ndcg",
    "novelty",
    "popularity_bucket",
    "popularity_counts",
    "precision",
    "rank_metrics",
    "ranks",
    "recall",
    "roc_auc",
    "serendipity",
]
