"""Transfer of pretrained item encoders into recommenders.

The names below are imported when first used, so that `import recotransfer` pulls in neither torch nor faiss.

>>> import recotransfer as rt
>>> rt.Filter(where="price < 20").where
'price < 20'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recotransfer._version import __version__

if TYPE_CHECKING:
    from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items, Recommendations
    from recotransfer.diagnostics import guard
    from recotransfer.evaluation import splits
    from recotransfer.experiments import tune
    from recotransfer.experiments.benchmark import Benchmark, variants_of
    from recotransfer.io.readers import read_interactions, read_items
    from recotransfer.io.schema import EventWeights
    from recotransfer.io.writers import write_recommendations
    from recotransfer.recommenders import (
        ALS,
        BPR,
        EASE,
        AdaptiveFusion,
        ContentProfiles,
        HybridItems,
        HybridRanker,
        ItemKNN,
        LearnedHybrid,
        Popularity,
        Probe,
        RankFusion,
        Recommender,
        RidgeProfiles,
        SASRec,
        StackedFusion,
        WeightedFusion,
    )
    from recotransfer.serving.batch import BatchJob
    from recotransfer.task import TransferTask

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
    "LearnedHybrid",
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
    "__version__",
    "guard",
    "read_interactions",
    "read_items",
    "splits",
    "tune",
    "variants_of",
    "write_recommendations",
]

_HOMES = {
    "data": ("Embeddings", "Filter", "IdMap", "Interactions", "Items", "Recommendations"),
    "diagnostics": ("guard",),
    "experiments": ("tune",),
    "experiments.benchmark": ("Benchmark", "variants_of"),
    "io.readers": ("read_interactions", "read_items"),
    "io.schema": ("EventWeights",),
    "io.writers": ("write_recommendations",),
    "recommenders": (
        "ALS", "BPR", "EASE", "ContentProfiles", "HybridItems", "ItemKNN", "LearnedHybrid", "Popularity", "Probe",
        "Recommender", "RidgeProfiles", "SASRec", "AdaptiveFusion", "HybridRanker", "RankFusion", "StackedFusion",
        "WeightedFusion",
    ),
    "serving.batch": ("BatchJob",),
    "task": ("TransferTask",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "splits":
        return importlib.import_module(f"{__name__}.evaluation.splits")

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
