"""Diagnostics: transferability before training, the guard after it, drift in production."""

from __future__ import annotations

from recotransfer.diagnostics.drift import Drift, Shift, drift
from recotransfer.diagnostics.guard import Bucket, Guarded, Verdict, guard
from recotransfer.diagnostics.transferability import (
    coral_distance,
    h_score,
    logme,
    mmd,
    neighbour_agreement,
    proxy_a_distance,
)

__all__ = [
    "Bucket",
    "Drift",
    "Guarded",
    "Shift",
    "Verdict",
    "coral_distance",
    "drift",
    "guard",
    "h_score",
    "logme",
    "mmd",
    "neighbour_agreement",
    "proxy_a_distance",
]
