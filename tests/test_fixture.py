"""Models saved by the first version, kept for ever: what was saved once must go on loading and answering the same."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO

from recotransfer.data import Embeddings, Filter, IdMap, Interactions
from recotransfer.recommenders import HybridItems, RidgeProfiles

FOLDER = Path(__file__).parent / "fixtures" / "format_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
MODELS = {"hybrid": HybridItems, "ridge": RidgeProfiles}
COLD = ["i27", "i28", "i29"]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return MODELS[name].load(FOLDER / name)


def test_recommendations_are_those_of_the_day_it_was_saved(name, model):
    expected = EXPECTED[name]
    found = model.recommend(expected["users"], 5)
    assert found.items.tolist() == expected["items"]
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-5)


def test_stored_columns_filter(model):
    found = model.recommend(["u0"], 40, filter=Filter(where="in_stock and price < 20"), exclude_seen=False)
    listed = [item for item in found.items[0].tolist() if item is not None]
    assert sorted(listed) == sorted(f"i{n}" for n in range(30) if n % 2 == 0 and n % 5 and n + 0.5 < 20)


def test_new_users_and_new_items_are_still_taken(model):
    click = Interactions.from_frame(
        pd.DataFrame({"user": ["new"], "item": ["i0"], "t": [0.0]}), time="t", items=model.catalogue_
    )
    new = Embeddings(IdMap(["late"]), np.eye(8, dtype=np.float32)[:1])
    listed = model.recommend(k=31, histories=click, items=new).items[0].tolist()
    assert listed.index("late") < listed.index("i28")
    assert model.recommend(k=1, histories=click, filter=Filter(allow=COLD)).items.tolist() == [["i27"]]


def test_a_loaded_model_saves_the_same_again(name, model, tmp_path):
    model.save(tmp_path / "again")
    again = MODELS[name].load(tmp_path / "again").recommend(EXPECTED[name]["users"], 5)
    assert again.items.tolist() == EXPECTED[name]["items"]


def test_the_fixture_is_small_and_kept():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    names = [str(path.relative_to(REPO)) for path in files]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=REPO, capture_output=True, text=True, check=False)
    assert ignored.stdout == "", "git leaves part of the fixture out"
