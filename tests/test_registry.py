"""Names of classes: short ones for the package's, `package.module:Class` for anyone's, in files and words alike."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from recotransfer import registry
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import HashingText, encode_items, encoder_from_spec, encoder_spec
from recotransfer.errors import ArtifactError, InputError
from recotransfer.recommenders import EASE, HybridItems
from recotransfer.task import TransferTask

MODULE = '''
import numpy as np
from recotransfer.encoders import HashingText
from recotransfer.encoders.base import text_values
from recotransfer.recommenders import ItemKNN
from recotransfer.retrieval import ExactIndex
from recotransfer.transfer import Whitening
from recotransfer.transfer.base import Tuner


class Letters:
    """Counts of letters."""

    modality = "text"
    dim = 26

    def __init__(self, *, column: str = "title", squared: bool = False, shift: float = 0.0):
        self.column = column
        self.squared = squared
        self.shift = shift

    @property
    def name(self):
        return f"Letters/{self.column}/{self.squared}/{self.shift}"

    def values(self, items):
        return text_values(items, [self.column])

    def encode(self, values):
        out = np.array([[v.lower().count(chr(97 + i)) for i in range(26)] for v in values], np.float32)
        return out ** (1 + self.squared) + self.shift

    def explain_failure(self, value):
        return "it has no letters"


class Private(Letters):
    def __init__(self, *, of="title"):
        super().__init__(column=of)

    def spec(self):
        return {"of": self.column}


class Mine(ItemKNN):
    pass


class MyIndex(ExactIndex):
    pass


class MyWhitening(Whitening):
    pass


class MyTuner(Tuner):
    def __init__(self, *, rounds: int = 0):
        self.rounds = rounds

    def tune(self, encoder, items, relations):
        return encoder
'''


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A module of someone else's, importable and not imported."""
    name = f"their_shop_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def shop(n=12):
    titles = [f"{'red wool scarf' if i % 2 else 'blue tin mug'} {i}" for i in range(n)]
    items = Items(IdMap([f"i{i}" for i in range(n)]), pd.DataFrame({"title": titles}), {"title": "text"})
    user, item = np.nonzero(np.arange(20)[:, None] % 2 == np.arange(n) % 2)
    log = pd.DataFrame({"u": user, "i": [f"i{i}" for i in item]})
    return items, Interactions.from_frame(log, user="u", item="i", items=items.ids)


KINDS = {
    "recommender": (registry.recommenders, "Mine", "EASE", "EAZE"),
    "encoder": (registry.encoders, "Letters", "HashingText", "HashingTxt"),
    "transfer": (registry.transfers, "MyWhitening", "Whitening", "Whitenning"),
    "tuner": (registry.tuners, "MyTuner", "FineTune", "FinTune"),
    "index": (registry.indexes, "MyIndex", "ExactIndex", "ExactIndx"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_anyones_is_found_by_its_module_and_a_misspelt_one_of_ours_gets_a_hint(kind, theirs):
    known, mine, ours, misspelt = KINDS[kind]
    found = known.find(f"{theirs}:{mine}")
    assert known.name_to_save(found) == f"{theirs}:{mine}"
    assert known.name_of(known.find(ours)) == ours
    with pytest.raises(InputError, match=f"no {kind} is called '{misspelt}'; did you mean '{ours}'"):
        known.find(misspelt)
    with pytest.raises(InputError, match=f"'{theirs}:Missing' is not a class that meets the {kind} contract"):
        known.find(f"{theirs}:Missing")
    with pytest.raises(InputError, match="cannot be imported"):
        known.find("no_such_module_anywhere:Mine")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_never_chooses_what_is_imported(kind, theirs):
    known, mine, *_ = KINDS[kind]
    with pytest.raises(ArtifactError, match=f"import {theirs} first, then load again"):
        known.find_saved(f"{theirs}:{mine}")
    assert theirs not in sys.modules
    known.find(f"{theirs}:{mine}")
    assert known.find_saved(f"{theirs}:{mine}").__name__ == mine


def test_classes_that_no_name_leads_to_are_refused_when_they_are_saved():
    class Local(EASE):
        pass

    with pytest.raises(InputError, match="define the recommender at the top of a module"):
        registry.recommenders.name_to_save(Local)


def test_words_make_objects_with_checked_settings(theirs):
    made = registry.recommenders.make("EASE(reg=100, neighbours=7)")
    assert (made.reg, made.neighbours) == (100, 7)
    encoder = registry.encoders.make(f"{theirs}:Letters(squared=True, shift=-1)")
    assert (encoder.squared, encoder.shift) == (True, -1)
    with pytest.raises(InputError, match="Letters: squared must be True or False, got 1"):
        registry.encoders.make(f"{theirs}:Letters(squared=1)")
    with pytest.raises(InputError, match="EASE has no setting 'rge'; it has reg, neighbours, history_decay"):
        registry.recommenders.make("EASE(rge=100)")
    with pytest.raises(InputError, match="'folder'"):
        registry.tuners.make("FineTune")


def test_an_encoder_of_ones_own_comes_back_by_its_name_and_settings(theirs):
    for words in ("Letters(squared=True, shift=0.5)", "Private(of='title')"):
        encoder = registry.encoders.make(f"{theirs}:{words}")
        spec = json.loads(json.dumps(encoder_spec(encoder)))
        assert spec["class"] == f"{theirs}:{words.partition('(')[0]}"
        assert encoder_from_spec(spec).name == encoder.name


def test_settings_that_no_file_can_hold_are_refused_by_name():
    class Odd(HashingText):
        def __init__(self, *, table=None):
            super().__init__()
            self.table = table

    with pytest.raises(InputError, match="Odd: table has the type Series"):
        encoder_spec(Odd(table=pd.Series([1])))


def test_an_encoders_settings_are_checked_before_it_encodes():
    items, _ = shop()
    with pytest.raises(InputError, match="HashingText: dim must be a whole number of at least 1, got 0"):
        encode_items(items, HashingText(dim=0))


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from recotransfer.task import TransferTask
from recotransfer.errors import RecoTransferError
try:
    TransferTask.load(sys.argv[2])
except RecoTransferError as error:
    print(error)
__import__(sys.argv[3])
task = TransferTask.load(sys.argv[2])
print(type(task.encoders_[0]).__name__, type(task.transfers[0]).__name__, type(task.recommender).__name__)
print(task.recommend([0], 2).items.tolist())
"""


def test_a_task_of_classes_of_ones_own_loads_in_a_fresh_process_once_their_module_is_imported(theirs, tmp_path):
    items, events = shop()
    encoder = registry.encoders.make(f"{theirs}:Letters")
    transfer = registry.transfers.make(f"{theirs}:MyWhitening(dim=4)")
    task = TransferTask(HybridItems(), encoders=[encoder], transfers=[transfer]).fit(items, events)
    task.save(tmp_path / "task")
    words = [sys.executable, "-c", LOAD, str(tmp_path), str(tmp_path / "task"), theirs]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0].startswith(f"the encoder was saved as '{theirs}:Letters'; import {theirs} first, then load again")
    assert said[1:] == ["Letters MyWhitening HybridItems", str(task.recommend([0], 2).items.tolist())]


def test_an_index_of_ones_own_is_saved_and_found_again(theirs, tmp_path):
    _, events = shop()
    pytest.importorskip("implicit")
    from recotransfer.recommenders import ALS

    index = registry.indexes.make(f"{theirs}:MyIndex")
    model = ALS(dim=2, epochs=2).fit(events).use_index(index)
    model.save(tmp_path / "als")
    again = ALS.load(tmp_path / "als")
    assert type(again.index_) is type(index)
    assert again.recommend([0], 3).items.tolist() == model.recommend([0], 3).items.tolist()
