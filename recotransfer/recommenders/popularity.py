"""The most popular items for everyone, optionally with more weight on recent events."""

from __future__ import annotations

import numpy as np

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.base import Recommender
from recotransfer.settings import Positive

_DAY = 86_400  # seconds


class Popularity(Recommender):
    """Ranks items by the sum of their event weights, the same for all users.

    Args:
        half_life: days before the newest event at which an event counts half; None weights all equally.
    """

    def __init__(self, *, half_life: Positive | None = None) -> None:
        self.half_life = half_life

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        weight = events.weight.astype(np.float64)
        if self.half_life is not None:
            if events.time is None:
                raise InputError("half_life needs events with times; set it to None or give a time column")

            weight = weight * 0.5 ** ((events.time.max() - events.time) / _DAY / self.half_life)

        self.scores_ = np.bincount(events.item, weights=weight, minlength=len(events.items)).astype(np.float32)

    def _scores(self, events: Interactions) -> Float:
        return np.broadcast_to(self.scores_, (len(events.users), len(self.scores_))).copy()

    def _write(self, writer: ArtifactWriter) -> None:
        writer.array("scores", self.scores_)

    def _read(self, artifact: Artifact) -> None:
        self.scores_ = artifact.array("scores")
