"""What moves between domains, and whether it should: scores before training, the guard after it."""

from __future__ import annotations

from recotransfer.transfer.guard import Bucket, Guarded, Verdict, guard
from recotransfer.transfer.transferability import (
    coral_distance,
    h_score,
    logme,
    mmd,
    neighbour_agreement,
    proxy_a_distance,
)

__all__ = [
    "Bucket",
    "Guarded",
    "Verdict",
    "coral_distance",
    "guard",
    "h_score",
    "logme",
    "mmd",
    "neighbour_agreement",
    "proxy_a_distance",
]
