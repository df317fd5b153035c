"""What moves between domains, and whether it should: scores before training, the guard after it."""

from __future__ import annotations

from recotransfer.transfer.adaptive import Drift, Forgetting, Replay, Shift, drift, forgetting
from recotransfer.transfer.alignment import Adversarial, Coral, MMDMap
from recotransfer.transfer.augmentation import (
    Augmented,
    ImageNoise,
    LabelMap,
    TextNoise,
    augmented,
    map_labels,
    pseudo_labels,
)
from recotransfer.transfer.base import Transfer, Tuner
from recotransfer.transfer.distillation import Distil, DistilStatic
from recotransfer.transfer.finetuning import FineTune
from recotransfer.transfer.guard import Bucket, Guarded, Verdict, guard
from recotransfer.transfer.maps import ContrastiveHead, LearnedMetric, RidgeMap, SoftThreshold, Whitening
from recotransfer.transfer.multitask import MultiTask
from recotransfer.transfer.transferability import (
    coral_distance,
    h_score,
    logme,
    mmd,
    neighbour_agreement,
    proxy_a_distance,
)

__all__ = [
    "Adversarial",
    "Augmented",
    "Bucket",
    "ContrastiveHead",
    "Coral",
    "Distil",
    "DistilStatic",
    "Drift",
    "FineTune",
    "Forgetting",
    "Guarded",
    "ImageNoise",
    "LabelMap",
    "LearnedMetric",
    "MMDMap",
    "MultiTask",
    "Replay",
    "RidgeMap",
    "Shift",
    "SoftThreshold",
    "TextNoise",
    "Transfer",
    "Tuner",
    "Verdict",
    "Whitening",
    "augmented",
    "coral_distance",
    "drift",
    "forgetting",
    "guard",
    "h_score",
    "logme",
    "map_labels",
    "mmd",
    "neighbour_agreement",
    "proxy_a_distance",
    "pseudo_labels",
]
