"""Every map and every tuner of ours is held to the shipped contracts."""

import numpy as np
import pytest
from tiny import sentence_model

from recotransfer import registry
from recotransfer.encoders import SentenceText
from recotransfer.testing import TransferContract, TunerContract, checkerboard, colours, titles
from recotransfer.transfer import (
    Adversarial,
    ContrastiveHead,
    Coral,
    Distil,
    DistilStatic,
    FineTune,
    LearnedMetric,
    MMDMap,
    MultiTask,
    RidgeMap,
    SoftThreshold,
    Whitening,
)

QUICK = {"epochs": 2, "batch_size": 64}


class TestWhitening(TransferContract):
    keeps_neighbours = False  # it raises what is small, noise too

    def make(self):
        return Whitening()


class TestRidgeMap(TransferContract):
    def make(self):
        return RidgeMap(dim=4)


class TestLearnedMetric(TransferContract):
    def make(self):
        return LearnedMetric(dim=4)


class TestSoftThreshold(TransferContract):
    def make(self):
        return SoftThreshold(source=LearnedMetric(dim=4).fit(colours(), checkerboard()))


class OfTwoDomains(TransferContract):
    """The last four items are the target's: known by content, without a relation."""

    def relations(self):
        events = checkerboard()
        return events.select(np.flatnonzero(events.item < 8))


class TestCoral(OfTwoDomains):
    reads_vectors_only = False  # items of the source stay as they came

    def make(self):
        return Coral()


class TestContrastiveHead(TransferContract):
    def make(self):
        return ContrastiveHead(hidden=0, **QUICK)


class TestMultiTask(TransferContract):
    def make(self):
        return MultiTask(hidden=0, **QUICK)


class TestMMDMap(OfTwoDomains):
    def make(self):
        return MMDMap(**QUICK)


class TestAdversarial(OfTwoDomains):
    def make(self):
        return Adversarial(**QUICK)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    words = sorted({word for title in titles().columns["title"] for word in title.split()})
    return sentence_model(tmp_path_factory.mktemp("tiny"), words)


class OfTinyText(TunerContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tiny):
        cls.folder = tiny

    def encoder(self):
        return SentenceText(model=self.folder, precision="float32")


class TestFineTune(OfTinyText):
    def make(self, folder):
        return FineTune(folder=folder / "run", epochs=1, batch_size=16)


class TestDistil(OfTinyText):
    def make(self, folder):
        return Distil(folder=folder / "run", layers=1, epochs=1, batch_size=16)


class TestDistilStatic(OfTinyText):
    keeps_kind = False

    def make(self, folder):
        sizes = {"dim": 8, "width": 8, "hidden": 8, "made_up": 0}
        return DistilStatic(folder=folder / "run", epochs=1, batch_size=16, **sizes)


@pytest.mark.parametrize("known", [registry.transfers, registry.tuners], ids=lambda known: known.kind)
def test_every_class_of_ours_is_held_to_its_contract(known):
    held = {name.removeprefix("Test") for name, kind in globals().items() if hasattr(kind, "make")}
    assert set(known.names) <= held
