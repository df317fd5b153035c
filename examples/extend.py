"""Write your own encoder, recommender, transfer, index, adapter and metric.

Each one is fitted, tuned, benchmarked, saved, loaded in a fresh process and tested against the package's contracts,
which need pytest. Run it: python examples/extend.py
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recotransfer import Benchmark, TransferTask, splits, tune, variants_of
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders.base import text_values
from recotransfer.errors import NotFittedError
from recotransfer.experiments import Problem, run, split_items
from recotransfer.numerics.topk import top_k
from recotransfer.numerics.vectors import unit_rows
from recotransfer.recommenders import Probe
from recotransfer.recommenders.factor_model import FactorModel
from recotransfer.registry import indexes
from recotransfer.retrieval.base import checked_vectors
from recotransfer.settings import Decay
from recotransfer.testing import AdapterContract, EncoderContract, IndexContract, RecommenderContract, TransferContract
from recotransfer.transfer import Transfer


class Letters:
    """An encoder: the number of times each letter occurs in a text."""

    modality = "text"
    dim = 26

    def __init__(self, *, column: str = "title", roots: bool = False) -> None:
        self.column = column
        self.roots = roots

    @property
    def name(self) -> str:
        """The key of cached vectors: it names every setting that changes them, and a version."""
        return f"Letters/{self.roots}/1"

    def values(self, items):
        """The text of each item."""
        return text_values(items, [self.column])

    def encode(self, values):
        """(len(values), 26) float32 counts, or their square roots."""
        rows = [[value.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for value in values]
        counts = np.array(rows, np.float32).reshape(len(values), self.dim)
        return np.sqrt(counts) if self.roots else counts

    def explain_failure(self, value):
        """Never called: letters can be counted in any text."""
        return f"{value!r} has no letters"


class MeanOfHistory(FactorModel):
    """A recommender: the items nearest to the mean of the user's history, found with an index."""

    needs_items = True
    search_space = {"history_decay": (0.3, 1.0)}

    def __init__(self, *, history_decay: Decay = 0.8) -> None:
        self.history_decay = history_decay

    def _fit(self, events, items):
        self._set_factors(unit_rows(items.vectors))

    def _queries(self, events):
        return np.asarray(self._history_weights(events) @ self.factors_, np.float32)

    def _content(self):
        fitted = IdMap(self.catalogue_.ids[: len(self.factors_)])  # items added later come after these
        return Embeddings(fitted, self.factors_)


class Centred(Transfer):
    """A transfer: vectors minus the mean of the training vectors."""

    def _learn(self, vectors, relations):
        return {"mean": vectors.mean(axis=0)}

    def _apply(self, vectors):
        return vectors - self.state_["mean"]


class PlainIndex:
    """An index: exact search by all inner products, the simplest there is."""

    def __init__(self) -> None:
        self._vectors = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def vectors(self):
        if self._vectors is None:
            raise NotFittedError("the index is empty; call build first")

        return self._vectors

    def build(self, vectors):
        self._vectors = checked_vectors(vectors, None).copy()
        return self

    def add(self, vectors):
        self._vectors = np.concatenate([self._vectors, checked_vectors(vectors, self._vectors.shape[1])])

    def extended(self, vectors):
        out = PlainIndex().build(self.vectors)
        out.add(vectors)
        return out

    def search(self, queries, k, *, exclude=None, mask=None):
        return top_k(queries, self.vectors, k, exclude=exclude, mask=mask)

    def save(self, writer, prefix):
        writer.array(f"{prefix}.vectors", self.vectors)

    @classmethod
    def load(cls, artifact, prefix):
        return cls().build(artifact.array(f"{prefix}.vectors"))


def margin(predictions) -> float:
    """A metric: the mean margin between the best score of a true label and that of a false one."""
    true = np.where(predictions.truth, predictions.scores, -np.inf).max(axis=1)
    false = np.where(predictions.truth, -np.inf, predictions.scores).max(axis=1)
    return float((true - false).mean())


def moods(reviews, labels, part) -> Problem:
    """An adapter: reviews as items, and their moods as users."""
    items = Items(IdMap(range(len(reviews))), pd.DataFrame({"title": reviews}), {"title": "text"})
    split = split_items(Interactions.from_labels(labels, items.ids), part)
    return Problem("moods", items, split, {"margin": margin}, encoders=[Letters()])


def answers(outcome) -> pd.DataFrame:
    """The adapter's way back: a table of reviews and predicted moods."""
    return pd.DataFrame({"review": outcome.predictions.queries, "mood": outcome.predictions.best})


# -- the contract tests, three lines each ------------------------------------------------------------------------------


class TestLetters(EncoderContract):
    def make(self):
        return Letters(roots=True)


class TestMeanOfHistory(RecommenderContract):
    symmetric_similarity = True

    def make(self):
        return MeanOfHistory()


class TestCentred(TransferContract):
    def make(self):
        return Centred()


class TestPlainIndex(IndexContract):
    def make(self):
        return PlainIndex()


class TestMoods(AdapterContract):
    def problem(self):
        reviews = ["glad glad day", "sour sour night"] * 20
        return moods(
            reviews, ["good", "bad"] * 20, ["train", "train", "valid", "valid", "test", "test", "train", "train"] * 5
        )

    def read_back(self, outcome):
        return answers(outcome)


# -- all of it in use --------------------------------------------------------------------------------------------------

FRESH = (
    "import extend, recotransfer, sys; print(recotransfer.TransferTask.load(sys.argv[1]).recommend(['u0'], 3).items)"
)


def shop(users: int = 30, items: int = 24) -> tuple[Items, Interactions]:
    """A shop in which each user buys one kind of product only."""
    words = ["red woollen scarf", "blue tin mug", "green garden spade"]
    table = pd.DataFrame({"title": [f"{words[i % 3]} {i}" for i in range(items)]})
    rng = np.random.default_rng(0)
    log = [
        (f"u{u}", f"i{i}", t)
        for u in range(users)
        for t, i in enumerate(rng.permutation(np.arange(u % 3, items, 3))[:6])
    ]
    catalogue = Items(IdMap([f"i{i}" for i in range(items)]), table, {"title": "text"})
    return catalogue, Interactions.from_frame(pd.DataFrame(log, columns=["user", "item", "time"]), time="time")


def main() -> None:
    """Fit, tune, benchmark, save, load in a fresh process, and run the contract tests."""
    items, events = shop()
    with tempfile.TemporaryDirectory() as scratch:
        task = TransferTask(MeanOfHistory(), encoders=[Letters()], transfers=[Centred()], progress=False)
        # Settings are chosen on held-out events.
        best = tune(task, items, events, trials=2).params
        print(f"tuned: {best}")

        task = TransferTask(MeanOfHistory(**best), encoders=[Letters()], transfers=[Centred()], progress=False)
        task.fit(items, events)
        task.recommender.use_index(indexes.make("extend:PlainIndex"))
        task.save(Path(scratch) / "model")
        print(f"here: {task.recommend(['u0'], 3).items}")
        # A saved folder names its classes as module:Class, so a fresh process imports them by itself.
        fresh = [sys.executable, "-c", FRESH, str(Path(scratch) / "model")]
        print(f"in a fresh process: {subprocess.check_output(fresh, text=True, cwd=Path(__file__).parent).strip()}")

        # Variants of a benchmark share encoders and transfers, and each is tuned and tested alike.
        base = TransferTask(encoders=[Letters()], transfers=[Centred()], progress=False)
        variants = variants_of(["mine=extend:MeanOfHistory(history_decay=0.9)", "Popularity"])
        bench = Benchmark(Path(scratch) / "bench", trials=1, progress=False)
        results = bench.run(items, splits.leave_last(events), variants, task=base)
        print(f"benchmarked: {[(line['name'], line['failed']) for line in results['variants']]}")

    outcome = run(TestMoods().problem(), TransferTask(Probe(), progress=False), draws=20)
    print(f"moods: margin {outcome.metrics['margin'].value:.2f}, {len(answers(outcome))} answers")
    flags = ["-q", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(Path(__file__).parent)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = pytest.main([*flags, __file__])
    print(f"contracts: {said.getvalue().strip().splitlines()[-1]}")
    sys.exit(status)


if __name__ == "__main__":
    import extend  # import this module by name, so that saved folders refer to extend:Class rather than __main__:Class

    extend.main()
