"""`Recommendations`: ranked lists, and `Reason`: why an item is in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data.ids import IdMap, read_only
from recotransfer.errors import InputError


@checked_class
@dataclass(frozen=True)
class Reason:
    """Why an item was recommended.

    Attributes:
        because: (item id, share of the score) of the items in the user's history that contributed most.
        parts: share of the score by model component, for example {"behaviour": 0.7, "text": 0.3}.
    """

    because: tuple[tuple[Any, float], ...]
    parts: Mapping[str, float]

    def __str__(self) -> str:
        items = ", ".join(f"{item} ({share:.0%})" for item, share in self.because)
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.parts.items() if share >= 0.005)
        return f"because of {items} [{parts}]" if items else f"[{parts}]"


@checked_class
@dataclass(frozen=True)
class Recommendations:
    """Ranked lists, best first.

    Attributes:
        users: (n,) ids of the users; in `similar_items` and `label`, of the query items.
        catalogue: the items (in `label`, users) that `positions` index.
        positions: (n, k) int64, padded with -1 after the end of a list.
        scores: (n, k) float32, higher is better; -inf where `positions` is -1.
        reason: (n, k) `Reason` objects; None if no reasons were requested.

    Raises:
        InputError: the shapes differ.
    """

    users: NDArray[Any]
    catalogue: IdMap
    positions: NDArray[np.int64]
    scores: NDArray[np.float32]
    reason: NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        for name in ("users", "positions", "scores", "reason"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(values))

        shape = (len(self.users), self.positions.shape[-1])
        for name, wanted in (("users", shape[:1]), ("positions", shape), ("scores", shape), ("reason", shape)):
            if (array := getattr(self, name)) is None:
                continue
            if array.shape != wanted:
                raise InputError(f"recommendations: {name} has shape {array.shape}, wanted {wanted}")

            object.__setattr__(self, name, read_only(array))

    @property
    def items(self) -> NDArray[Any]:
        """(n, k) item ids, padded with None after the end of a list."""
        return self.catalogue.take(self.positions)

    def __len__(self) -> int:
        return len(self.users)

    def to_frame(self, user_name: str = "user", item_name: str = "item") -> pd.DataFrame:
        """One row per recommendation: user, item, rank (from 1), score, and the reason as text if there is one."""
        row, column = np.nonzero(self.positions >= 0)
        frame = pd.DataFrame(
            {
                user_name: self.users[row],
                item_name: self.catalogue.take(self.positions[row, column]),
                "rank": (column + 1).astype(np.int32),
                "score": self.scores[row, column],
            }
        )
        if self.reason is not None:
            frame["reason"] = [str(r) for r in self.reason[row, column]]

        return frame
