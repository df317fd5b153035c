"""Recommenders behind one contract; see `base.Recommender`."""

from recotransfer.errors import ArtifactError
from recotransfer.recommenders.base import Recommender
from recotransfer.recommenders.content import ContentProfiles, RidgeProfiles
from recotransfer.recommenders.factors import ALS, BPR
from recotransfer.recommenders.hybrid import HybridItems
from recotransfer.recommenders.linear import EASE
from recotransfer.recommenders.neighbours import ItemKNN
from recotransfer.recommenders.popularity import Popularity

__all__ = [
    "ALS",
    "BPR",
    "EASE",
    "ContentProfiles",
    "HybridItems",
    "ItemKNN",
    "Popularity",
    "Recommender",
    "RidgeProfiles",
    "by_name",
]

_ALL: tuple[type[Recommender], ...] = (
    HybridItems, EASE, ItemKNN, RidgeProfiles, ContentProfiles, ALS, BPR, Popularity,
)  # fmt: skip


def by_name(name: str) -> type[Recommender]:
    """The recommender class called `name`."""
    for kind in _ALL:
        if kind.__name__ == name:
            return kind
    raise ArtifactError(f"no recommender is called {name!r}; known: {', '.join(k.__name__ for k in _ALL)}")
