"""The data classes that the whole package shares: ids, items, interactions, embeddings and recommendations.

All are frozen, and their arrays are read-only. Users work with ids, computations with positions. `io.readers` reads
items and interactions from files.
"""

from __future__ import annotations

from recotransfer.data.columns import extended_columns, filter_columns
from recotransfer.data.embeddings import Embeddings
from recotransfer.data.filters import Filter
from recotransfer.data.ids import IdMap
from recotransfer.data.interactions import Interactions
from recotransfer.data.items import ColumnKind, Items
from recotransfer.data.matching import ids_like, positions_like
from recotransfer.data.recommendations import Reason, Recommendations

__all__ = [
    "ColumnKind",
    "Embeddings",
    "Filter",
    "IdMap",
    "Interactions",
    "Items",
    "Reason",
    "Recommendations",
    "extended_columns",
    "filter_columns",
    "ids_like",
    "positions_like",
]
