"""Indexes for inner-product search over item vectors: exact, FAISS, and a measured choice between them."""

from __future__ import annotations

from recotransfer.retrieval.base import Index
from recotransfer.retrieval.choice import Chosen, choose_index, load_index, nearest, save_index
from recotransfer.retrieval.exact import ExactIndex
from recotransfer.retrieval.faiss import FaissIndex

__all__ = [
    "Chosen",
    "ExactIndex",
    "FaissIndex",
    "Index",
    "choose_index",
    "load_index",
    "nearest",
    "save_index",
]
