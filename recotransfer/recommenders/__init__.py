"""Recommenders behind one contract; see `base.Recommender`."""

from recotransfer.recommenders.base import Recommender, by_name
from recotransfer.recommenders.content import ContentProfiles, RidgeProfiles
from recotransfer.recommenders.factors import ALS, BPR
from recotransfer.recommenders.fusion import AdaptiveFusion, RankFusion, StackedFusion, WeightedFusion
from recotransfer.recommenders.hybrid import HybridItems
from recotransfer.recommenders.linear import EASE
from recotransfer.recommenders.neighbours import ItemKNN
from recotransfer.recommenders.popularity import Popularity
from recotransfer.recommenders.probe import Probe
from recotransfer.recommenders.ranker import HybridRanker
from recotransfer.recommenders.sequential import SASRec

__all__ = [
    "ALS",
    "BPR",
    "EASE",
    "AdaptiveFusion",
    "ContentProfiles",
    "HybridItems",
    "HybridRanker",
    "ItemKNN",
    "Popularity",
    "Probe",
    "RankFusion",
    "Recommender",
    "RidgeProfiles",
    "SASRec",
    "StackedFusion",
    "WeightedFusion",
    "by_name",
]
