"""TF-IDF: figures by hand, the vocabulary's bounds, and texts of words that it does not know."""

import numpy as np
import pytest

from recotransfer.encoders import TfidfText, encoder_from_spec, encoder_spec
from recotransfer.encoders import words as module
from recotransfer.errors import InputError

TEXTS = ["Red cup!", "red red lamp", None, "blue cup"]


def test_figures_by_hand():
    encoder = TfidfText.learned(TEXTS)
    assert encoder.words == ["cup", "red", "!", "blue", "lamp"]
    np.testing.assert_allclose(encoder.idf, [*[np.log(4 / 3) + 1] * 2, *[np.log(2) + 1] * 3, np.log(4) + 1])
    row = np.array([0, (1 + np.log(2)) * (np.log(4 / 3) + 1), 0, 0, np.log(2) + 1, 0])
    np.testing.assert_allclose(encoder.encode(["red lamp RED"])[0], row / np.linalg.norm(row), rtol=1e-6)


def test_unknown_words_share_the_last_column_and_a_text_without_words_is_unreadable():
    vectors = TfidfText.learned(TEXTS).encode(["green, so green", "...", "red"])
    np.testing.assert_array_equal(vectors[0], [0, 0, 0, 0, 0, 1])
    assert np.isnan(vectors[1]).all()
    assert vectors[2, 1] == 1


def test_the_vocabulary_holds_the_most_frequent_words_that_fit(monkeypatch):
    assert TfidfText.learned(TEXTS, most=2).words == ["cup", "red"]
    monkeypatch.setattr(module, "_MOST_NUMBERS", 9)
    assert TfidfText.learned(TEXTS).words == ["cup", "red", "!"]
    monkeypatch.setattr(module, "_FEW", 2)
    assert TfidfText.learned(TEXTS).words == ["cup", "red"]
    with pytest.raises(InputError, match="no text holds a word"):
        TfidfText.learned([None, "..."])


def test_its_spec_is_the_encoder_and_its_name_tells_vocabularies_apart():
    encoder = TfidfText.learned(TEXTS, column="title")
    again = encoder_from_spec(encoder_spec(encoder))
    assert (again.name, again.column) == (encoder.name, "title")
    np.testing.assert_array_equal(again.encode(["red cup"]), encoder.encode(["red cup"]))
    assert TfidfText.learned(TEXTS[:2]).name != encoder.name
    with pytest.raises(InputError, match="idf has 1 weights for 1 words"):
        TfidfText(words=["cup"]).encode(["cup"])
