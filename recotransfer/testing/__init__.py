"""Contracts as test suites, so that a class of anyone's is held to them in three lines; needs pytest.

    from recotransfer.testing import RecommenderContract

    class TestMine(RecommenderContract):
        def make(self):
            return Mine()

A class attribute of the suite says what a model does not promise; each suite lists its own. The package's classes are
held to the same suites.
"""

from __future__ import annotations

import pytest

_SUITES = ("adapters", "encoders", "indexes", "recommenders", "transfers", "tuners")
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in _SUITES))  # failures show the values compared

from recotransfer.testing.adapters import AdapterContract  # noqa: E402  # only after that
from recotransfer.testing.checkerboard import ITEMS, USERS, answer, checkerboard, colours, priced, titles  # noqa: E402
from recotransfer.testing.encoders import EncoderContract  # noqa: E402
from recotransfer.testing.indexes import IndexContract  # noqa: E402
from recotransfer.testing.recommenders import RecommenderContract  # noqa: E402
from recotransfer.testing.transfers import TransferContract  # noqa: E402
from recotransfer.testing.tuners import TunerContract  # noqa: E402

__all__ = [
    "ITEMS",
    "USERS",
    "AdapterContract",
    "EncoderContract",
    "IndexContract",
    "RecommenderContract",
    "TransferContract",
    "TunerContract",
    "answer",
    "checkerboard",
    "colours",
    "priced",
    "titles",
]
