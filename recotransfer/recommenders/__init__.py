"""Recommenders: one interface, `base.Recommender`, and one file per model."""

from __future__ import annotations

from recotransfer.recommenders.audiences import audience
from recotransfer.recommenders.base import Recommender
from recotransfer.recommenders.content import ContentProfiles, RidgeProfiles
from recotransfer.recommenders.ease import EASE
from recotransfer.recommenders.factors import ALS, BPR
from recotransfer.recommenders.fusion import RankFusion
from recotransfer.recommenders.hybrid import HybridItems
from recotransfer.recommenders.item_knn import ItemKNN
from recotransfer.recommenders.learned_fusion import AdaptiveFusion, StackedFusion, WeightedFusion
from recotransfer.recommenders.learned_hybrid import LearnedHybrid
from recotransfer.recommenders.popularity import Popularity
from recotransfer.recommenders.probe import Probe
from recotransfer.recommenders.ranker import HybridRanker
from recotransfer.recommenders.sasrec import SASRec
from recotransfer.recommenders.transition_rings import TransitionRings

__all__ = [
    "ALS",
    "BPR",
    "EASE",
    "AdaptiveFusion",
    "ContentProfiles",
    "HybridItems",
    "HybridRanker",
    "ItemKNN",
    "LearnedHybrid",
    "Popularity",
    "Probe",
    "RankFusion",
    "Recommender",
    "RidgeProfiles",
    "SASRec",
    "StackedFusion",
    "TransitionRings",
    "WeightedFusion",
    "audience",
]
