"""What moves between domains: maps on vectors (`Transfer`) and on encoders (`Tuner`)."""

from __future__ import annotations

from recotransfer.transfer._decoder import Pairs
from recotransfer.transfer.augmentation import Augmented, ImageNoise, TextNoise, augmented
from recotransfer.transfer.base import Transfer, Tuner, fit_transfers, tune_encoders
from recotransfer.transfer.contrastive import ContrastiveHead
from recotransfer.transfer.distillation import Distil
from recotransfer.transfer.domain_adaptation import Adversarial, Coral, MMDMap
from recotransfer.transfer.finetuning import FineTune
from recotransfer.transfer.labels import LabelMap, map_labels, pseudo_labels
from recotransfer.transfer.linear import LearnedMetric, RidgeMap, SoftThreshold, Whitening
from recotransfer.transfer.multitask import MultiTask
from recotransfer.transfer.replay import Forgetting, Replay, forgetting
from recotransfer.transfer.static_distillation import DistilStatic
from recotransfer.transfer.translator import Translator

__all__ = [
    "Adversarial",
    "Augmented",
    "ContrastiveHead",
    "Coral",
    "Distil",
    "DistilStatic",
    "FineTune",
    "Forgetting",
    "ImageNoise",
    "LabelMap",
    "LearnedMetric",
    "MMDMap",
    "MultiTask",
    "Pairs",
    "Replay",
    "RidgeMap",
    "SoftThreshold",
    "TextNoise",
    "Transfer",
    "Translator",
    "Tuner",
    "Whitening",
    "augmented",
    "fit_transfers",
    "forgetting",
    "map_labels",
    "pseudo_labels",
    "tune_encoders",
]
