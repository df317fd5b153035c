"""Sequences as counts of words, whole and placed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import IdMap, Items
from recotransfer.encoders import KmerSequence, SentenceText, encode_items, encoder_from_spec, encoder_spec
from recotransfer.errors import InputError


def cosines(encoder, values):
    rows = encoder.encode(values)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def random_sequences(n, length, seed=0):
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("ACGT"), length)) for _ in range(n)]


def spectrum(text, k):
    counts = pd.Series([text[at : at + k] for at in range(len(text) - k + 1)]).value_counts()
    return counts.map(np.sqrt)


def test_hashed_products_are_those_of_counted_words():
    values = random_sequences(12, 60)
    found = cosines(KmerSequence(k=(3,), placed=(), dim=1 << 16), values)
    table = pd.DataFrame([spectrum(text, 3) for text in values]).fillna(0).to_numpy()
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(found, table @ table.T, atol=0.02)


def test_words_are_found_wherever_they_are_but_placed_words_only_near_their_place():
    here, near, far = "TATAAT" + "G" * 54, "G" * 2 + "TATAAT" + "G" * 52, "G" * 54 + "TATAAT"
    whole = cosines(KmerSequence(k=(6,), placed=()), [here, near, far])
    placed = cosines(KmerSequence(k=(), placed=((6, 8),)), [here, near, far])
    assert whole[0, 2] > 0.85
    assert placed[0, 1] > placed[0, 2] + 0.05


@given(st.lists(st.text("ACGTacgtuN", min_size=0, max_size=30), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_each_sequence_has_its_vector_whatever_stands_beside_it(values):
    encoder = KmerSequence(k=(2, 3), placed=((1, 1), (2, 3)), dim=64)
    together = encoder.encode(values)
    alone = np.concatenate([encoder.encode([value]) for value in values])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.shape == (len(values), 64)


def test_case_and_uracil_make_no_difference_and_other_letters_break_words():
    encoder = KmerSequence(k=(3,), placed=(), dim=256)
    rows = encoder.encode(["ACGTTT", "acguuu", "ACGNTTT", "ANCNG"])
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.isfinite(rows[2]).all()
    assert not np.allclose(rows[0], rows[2])
    assert np.isnan(rows[3]).all()
    assert "ANCNG" in encoder.explain_failure("ANCNG")


def test_sequences_without_a_word_are_reported_and_a_spec_makes_the_same_encoder():
    items = Items(IdMap(["a", "b", "c"]), pd.DataFrame({"sequence": ["ACGTACGTAA", None, "NN"]}))
    encoder = KmerSequence(dim=128)
    done = encode_items(items, encoder, progress=False)
    assert done.embeddings.has_content.tolist() == [True, False, False]
    assert [item for item, _ in done.report.unreadable] == ["c"]
    again = encoder_from_spec(encoder_spec(encoder))
    assert again.name == encoder.name
    np.testing.assert_array_equal(again.encode(["ACGTACGTAA"]), encoder.encode(["ACGTACGTAA"]))


def test_vectors_stay_the_same_from_version_to_version():
    row = KmerSequence(k=(2,), placed=((1, 2),), dim=16).encode(["ACGTTGCA"])[0]
    known = [-0.427, 0, -0.177, 0, -0.267, 0, 0, -0.427, 0.535, -0.177, 0, -0.073, -0.444, 0, 0, -0.216]
    np.testing.assert_allclose(row, known, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"k": (), "placed": ()}, {"k": (0,)}, {"placed": ((3, 0),)}, {"k": (40,)}])
def test_impossible_words_are_refused(wrong):
    with pytest.raises(InputError):
        KmerSequence(**wrong).encode(["ACGT"])


def test_proteins_have_an_alphabet_of_their_own():
    encoder = KmerSequence(k=(2,), placed=(), dim=512, alphabet="ACDEFGHIKLMNPQRSTVWY")
    assert cosines(encoder, ["MKTAYIAKQR", "MKTAYIAKQR", "GGGGWWWW"]).round(3)[0].tolist() == [1.0, 1.0, 0.0]


def test_a_pretrained_model_of_dna_is_read_as_text(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {token: at for at, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACGT"])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="[MASK]", **special).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small = BertConfig(vocab_size=len(vocabulary), **sizes)
    BertModel(small).save_pretrained(tmp_path)
    encoder = SentenceText(model=tmp_path, column="sequence", precision="float32")
    rows = encoder.encode(["ACGTACGT", "ACGTACGT", "TTTTTTTT"])
    assert rows.shape == (3, 16)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    assert not np.allclose(rows[0], rows[2], atol=1e-3)
