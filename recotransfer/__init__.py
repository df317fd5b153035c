"""Transfer of pretrained item encoders into recommenders.

The names below are imported when first used, so that `import recotransfer` pulls in neither torch nor faiss.

>>> import recotransfer as rt
>>> rt.Filter(where="price < 20").where
'price < 20'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from recotransfer import splits
    from recotransfer.arms import arms_of
    from recotransfer.batch import BatchJob
    from recotransfer.benchmark import Benchmark
    from recotransfer.data import Embeddings, IdMap, Interactions, Items, Recommendations
    from recotransfer.filters import Filter
    from recotransfer.readers import EventWeights, read_interactions, read_items
    from recotransfer.recommenders import (
        ALS,
        BPR,
        EASE,
        AdaptiveFusion,
        ContentProfiles,
        HybridItems,
        HybridRanker,
        ItemKNN,
        Popularity,
        Probe,
        RankFusion,
        Recommender,
        RidgeProfiles,
        SASRec,
        StackedFusion,
        WeightedFusion,
    )
    from recotransfer.task import TransferTask
    from recotransfer.transfer.guard import guard
    from recotransfer.tuning import tune

__all__ = [
    "ALS",
    "BPR",
    "EASE",
    "AdaptiveFusion",
    "BatchJob",
    "Benchmark",
    "ContentProfiles",
    "Embeddings",
    "EventWeights",
    "Filter",
    "HybridItems",
    "HybridRanker",
    "IdMap",
    "Interactions",
    "ItemKNN",
    "Items",
    "Popularity",
    "Probe",
    "RankFusion",
    "Recommendations",
    "Recommender",
    "RidgeProfiles",
    "SASRec",
    "StackedFusion",
    "TransferTask",
    "WeightedFusion",
    "arms_of",
    "guard",
    "read_interactions",
    "read_items",
    "splits",
    "tune",
]

_HOMES = {
    "arms": ("arms_of",),
    "batch": ("BatchJob",),
    "benchmark": ("Benchmark",),
    "data": ("Embeddings", "IdMap", "Interactions", "Items", "Recommendations"),
    "filters": ("Filter",),
    "readers": ("EventWeights", "read_interactions", "read_items"),
    "recommenders": (
        "ALS", "BPR", "EASE", "ContentProfiles", "HybridItems", "ItemKNN", "Popularity", "Probe", "Recommender",
        "RidgeProfiles", "SASRec", "AdaptiveFusion", "HybridRanker", "RankFusion", "StackedFusion", "WeightedFusion",
    ),
    "task": ("TransferTask",),
    "transfer": ("guard",),
    "tuning": ("tune",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "splits":
        return importlib.import_module(f"{__name__}.splits")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
