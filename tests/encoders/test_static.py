"""Static text: words and pieces found as by a plain reading, vectors as the formula says, saving, damage."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import IdMap, Items
from recotransfer.encoders import (
    StaticText,
    encode_items,
    encoder_from_spec,
    encoder_spec,
    store_encoders,
    stored_encoders,
)
from recotransfer.encoders.static import StaticNetwork, Vocabulary, fold, words, write_static
from recotransfer.errors import InputError
from recotransfer.io.artifacts import open_artifact, write_artifact

ENTRIES = ["red", "shoe", "shoes", "un", "##break", "##able", "##a", "b", "crème", "##é", "日", "本", "ελ", "##x"]
ENTRIES = list(dict.fromkeys(entry if entry.startswith("##") else words(entry)[0] for entry in ENTRIES))
DIM, WIDTH, HIDDEN = 5, 3, 4


def weights(entries=ENTRIES, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "table": (len(entries), DIM), "own": (DIM, WIDTH), "before": (DIM, WIDTH), "bias": (WIDTH,),
        "in": (DIM + WIDTH, HIDDEN), "in_bias": (HIDDEN,), "out": (HIDDEN, DIM), "out_bias": (DIM,),
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float16).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def model(tmp_path):
    write_static(tmp_path / "static", ENTRIES, weights())
    return StaticText(model=tmp_path / "static")


def read_plainly(text, entries=ENTRIES):
    """The rows of a text: whole words, else the longest pieces from the left, letters without a piece passed over."""
    row, found = {entry: at for at, entry in enumerate(entries)}, []
    for word in words(text):
        if word in row:
            found.append(row[word])
            continue
        at = 0
        while at < len(word):
            mark = "##" if at else ""
            end = next((end for end in range(len(word), at, -1) if mark + word[at:end] in row), None)
            if end is not None:
                found.append(row[mark + word[at:end]])
            at = at + 1 if end is None else end
    return found


def formula(rows, w):
    """A text's vector, word by word."""
    sums, pairs = np.zeros(DIM), np.zeros(WIDTH)
    for n, row in enumerate(rows):
        sums += w["table"][row]
        pair = w["table"][row] @ w["own"] + w["bias"]
        if n:
            pair = pair + w["table"][rows[n - 1]] @ w["before"]
        pairs += np.maximum(pair, 0)
    joint = np.concatenate([sums, pairs]) / np.sqrt(len(rows))
    out = joint[:DIM] + np.maximum(joint @ w["in"] + w["in_bias"], 0) @ w["out"] + w["out_bias"]
    return out / np.linalg.norm(out)


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["red", "Shoes", "unbreakable", "creme", "CRÈME", "日本", "ab", "zz", "RED-shoe", "redx", "ελα"]
        ),
        st.text(max_size=8),
    ),
    max_size=6,
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_words_and_pieces_are_those_of_a_plain_reading(texts):
    found, start = Vocabulary(ENTRIES).rows(texts)
    assert [found[a:b].tolist() for a, b in pairwise(start)] == [read_plainly(text) for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_folding_keeps_letters_and_digits_alone_beyond_ascii(text):
    folded = fold(text)
    if not text.isascii():
        assert not re.search(r"[^\w ]|_", folded)
    assert words(text) == words(folded)


def test_case_accents_and_punctuation_do_not_matter_and_chinese_characters_stand_alone():
    assert words("Crème-Brûlée, N°5!") == ["creme", "brulee", "n", "5"]
    assert words("日本 shoe") == ["日", "本", "shoe"]
    assert words("ＦＵＬＬ width") == ["full", "width"]


def test_vectors_follow_the_formula_and_have_unit_length(model):
    texts = ["red shoe", "red", "unbreakable red shoes", "shoe red"]
    got = model.encode(texts)
    assert got.dtype == np.float32
    for row, text in zip(got, texts, strict=True):
        np.testing.assert_allclose(row, formula(read_plainly(text), weights()), atol=1e-5)
    assert np.abs(got[0] - got[3]).max() > 0.01, "order matters: pairs of neighbours are read"


def test_the_training_form_gives_the_same_vectors_and_saves_to_the_same_model(model, tmp_path):
    torch = pytest.importorskip("torch")
    texts = ["red shoe", "b", "unbreakable red shoes", "a日b"]
    module = model.module()
    with torch.no_grad():
        pooled = module(model.collate(texts)).pooled.numpy()
    np.testing.assert_allclose(pooled, model.encode(texts), atol=1e-5)
    again = model.saved(module, tmp_path / "again")
    np.testing.assert_array_equal(again.encode(texts), model.encode(texts))
    assert again.name.partition("@")[2] == model.name.partition("@")[2], "the same bytes have the same revision"


def test_texts_of_which_nothing_is_known_are_reported_and_count_as_missing(model):
    items = Items(IdMap(["a", "b", "c"]), pd.DataFrame({"title": ["red", "???", None]}), {"title": "text"})
    found = encode_items(items, model, progress=False)
    assert found.embeddings.has_content.tolist() == [True, False, False]
    assert found.report.unreadable == (("b", model.explain_failure("???")),)
    assert "'???' has no word" in model.explain_failure("???")


def test_many_texts_give_what_each_gives_alone(model):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "shoe", "zz", "unable"], 4)) + " red" for _ in range(5000)]
    got = model.encode(texts)
    for at in (0, 4095, 4096, 4999):
        np.testing.assert_allclose(got[at], model.encode([texts[at]])[0], atol=1e-6)
    assert model.encode([]).shape == (0, DIM)


def test_the_spec_and_an_artefact_bring_the_same_encoder_back(model, tmp_path):
    spec = json.loads(json.dumps(encoder_spec(model)))
    assert encoder_from_spec(spec).name == model.name
    specs = []
    write_artifact(tmp_path / "saved", "test", lambda writer: specs.extend(store_encoders([model], writer)))
    back = stored_encoders(specs, open_artifact(tmp_path / "saved"))[0]
    np.testing.assert_array_equal(back.encode(["red shoe"]), model.encode(["red shoe"]))


def test_the_name_changes_with_the_weights(model, tmp_path):
    write_static(tmp_path / "other" / "static", ENTRIES, weights(seed=1))
    other = StaticText(model=tmp_path / "other" / "static")
    assert other.name != model.name
    assert other.name.startswith("StaticText/static@")


@pytest.mark.parametrize("file", ["config.json", "vocabulary.json"])
def test_a_damaged_folder_is_refused_with_the_file_named(model, tmp_path, file):
    (tmp_path / "static" / file).write_text("{")
    with pytest.raises(InputError, match=file):
        StaticText(model=tmp_path / "static").encode(["red"])


def test_the_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"class": "BertModel"}')
    with pytest.raises(InputError, match="no static text model"):
        StaticText(model=tmp_path).encode(["red"])


def test_a_table_of_another_height_than_its_vocabulary_is_refused(tmp_path):
    write_static(tmp_path / "static", [*ENTRIES, "more"], weights())
    with pytest.raises(InputError, match=f"{len(ENTRIES) + 1} words"):
        StaticText(model=tmp_path / "static").encode(["more"])


def test_a_text_without_words_is_not_a_number_and_leaves_its_neighbours_alone():
    network, vocabulary = StaticNetwork(weights()), Vocabulary(ENTRIES)
    got = network.vectors(vocabulary.rows(["red", "", "shoe"]))
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()
