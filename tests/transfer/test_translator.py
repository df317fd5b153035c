"""Translators: the loss, frozen states, learning, resuming, early stopping, files and BLEU."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sentence_model

from recotransfer.encoders import SentenceText
from recotransfer.errors import InputError, NotFittedError
from recotransfer.evaluation.metrics import bleu, bleu_gain
from recotransfer.transfer import Pairs, Translator
from recotransfer.transfer import _decoder as decoder

ENGLISH = ["red", "blue", "big", "small", "dog", "cat", "bird", "fish", "sees", "hears"]
GERMAN = ["rot", "blau", "gross", "klein", "hund", "katze", "vogel", "fisch", "sieht", "hoert"]
SMALL = {"vocabulary": 60, "dim": 64, "layers": 1, "batch_size": 256, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A sentence model of one small layer, with random weights, that knows the English words."""
    return sentence_model(tmp_path_factory.mktemp("tiny"), ENGLISH, layers=1, embeddings=30, others=1)


@pytest.fixture
def encoder(tiny):
    return SentenceText(model=tiny, column="text")


def spoken(n, seed):
    """Sentences word by word in another language."""
    draw = np.random.default_rng(seed)
    words = [draw.integers(0, len(ENGLISH), draw.integers(2, 6)) for _ in range(n)]
    return Pairs(
        [" ".join(ENGLISH[w] for w in row) for row in words], [" ".join(GERMAN[w] for w in row) for row in words]
    )


def test_a_planted_language_is_learned_and_comes_back_from_its_file(encoder, tmp_path):
    model = Translator(**SMALL, epochs=10).fit(encoder, spoken(900, 0), spoken(60, 1), folder=tmp_path)
    new = spoken(60, 2)
    assert bleu(model.translate(new.sources), new.targets, draws=20).value > 60
    again = Translator.load(tmp_path)
    assert again.translate(new.sources, beams=1) == model.translate(new.sources, beams=1)
    assert again.params() == model.params()
    assert json.loads(json.dumps(model.report_)) == model.report_
    curve = model.report_["curve"]
    assert curve[-1]["valid"] < curve[0]["valid"] / 3
    order = np.random.default_rng(3).permutation(60)
    mixed = model.translate([new.sources[i] for i in order], beams=2)
    assert [mixed[i] for i in np.argsort(order)] == model.translate(new.sources, beams=2)


def test_a_frozen_encoder_stays_as_it_was_and_a_tuned_one_does_not(encoder, tmp_path):
    before = encoder.network[0].auto_model.state_dict()["encoder.layer.0.output.dense.weight"].clone()
    for epochs, same in ((0, True), (1, False)):
        model = Translator(**SMALL, epochs=2, encoder_epochs=epochs)
        model.fit(encoder, spoken(60, 0), spoken(20, 1), folder=tmp_path / str(epochs))
        after = model.network_.encoder.state_dict()["encoder.layer.0.output.dense.weight"]
        assert torch.equal(before, after) == same
    assert torch.equal(before, encoder.network[0].auto_model.state_dict()["encoder.layer.0.output.dense.weight"])


def test_states_kept_in_memory_give_the_loss_of_states_made_anew(encoder, tmp_path):
    model = Translator(**SMALL, epochs=1).fit(encoder, spoken(60, 0), spoken(20, 1), folder=tmp_path)
    told = model._tokens(spoken(30, 4))
    states = decoder.EncodedSources.of(model.network_.encoder, told)
    rows = np.array([7, 3, 20, 11])
    with torch.no_grad():
        kept, count = model._batch_loss(told, states, rows, 0.1)
        fresh, same = model._batch_loss(told, None, rows, 0.1)
    assert count == same == sum(len(told.targets[i]) for i in rows)
    assert float(kept) == pytest.approx(float(fresh), rel=0.01)


def test_a_killed_run_goes_on_and_ends_alike(encoder, tmp_path, monkeypatch):
    train, valid = spoken(120, 0), spoken(30, 1)
    make = lambda: Translator(**SMALL, epochs=4, encoder_epochs=2)  # noqa: E731
    whole = make().fit(encoder, train, valid, folder=tmp_path / "whole")
    save = decoder.DecoderRun.save

    def killed(self):
        save(self)
        if self.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(decoder.DecoderRun, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        make().fit(encoder, train, valid, folder=tmp_path / "killed")
    monkeypatch.setattr(decoder.DecoderRun, "save", save)
    resumed = make().fit(encoder, train, valid, folder=tmp_path / "killed")
    for mine, theirs in zip(resumed.report_["curve"], whole.report_["curve"], strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["valid"] == pytest.approx(theirs["valid"], rel=1e-3)
    state = whole.network_.state_dict()
    for name, value in resumed.network_.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-3)


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best(encoder, tmp_path):
    nonsense = spoken(40, 1)
    valid = Pairs(nonsense.sources, nonsense.targets[::-1])  # learning the train pairs makes these less likely
    settings = {**SMALL, "learning_rate": 2e-2}
    model = Translator(**settings, epochs=40, patience=2).fit(encoder, spoken(150, 0), valid, folder=tmp_path)
    curve = [point["valid"] for point in model.report_["curve"]]
    assert len(curve) == model.report_["best"] + 2 < 40
    told = model._tokens(valid)
    assert model._loss(told, None, decoder.batches_of(told.lengths, 256)) == pytest.approx(min(curve), rel=0.01)


def test_a_finished_run_is_only_read_another_is_refused_and_damage_is_seen(encoder, tmp_path, monkeypatch):
    train, valid = spoken(30, 0), spoken(10, 1)
    first = Translator(**SMALL, epochs=1).fit(encoder, train, valid, folder=tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    monkeypatch.setattr(Translator, "_build", lambda *_: pytest.fail("trained again"))
    again = Translator(**SMALL, epochs=1).fit(encoder, train, valid, folder=tmp_path)
    assert again.report_ == first.report_
    assert again.translate(valid.sources) == first.translate(valid.sources)
    with pytest.raises(InputError, match="another epochs"):
        Translator(**SMALL, epochs=2).fit(encoder, train, valid, folder=tmp_path)
    with pytest.raises(InputError, match="texts"):
        Translator(**SMALL, epochs=1).fit(encoder, spoken(30, 5), valid, folder=tmp_path)
    monkeypatch.undo()
    (tmp_path / "report.json").unlink()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        Translator(**SMALL, epochs=1).fit(encoder, train, valid, folder=tmp_path)


def test_an_epoch_whose_loss_is_no_number_is_never_the_best(encoder, tmp_path, monkeypatch):
    losses = iter([3.0, float("nan"), 2.0, float("nan")])
    monkeypatch.setattr(Translator, "_loss", lambda *_: next(losses))
    model = Translator(**SMALL, epochs=4, patience=2).fit(encoder, spoken(30, 0), spoken(10, 1), folder=tmp_path)
    assert [point["valid"] for point in model.report_["curve"]] == [3.0, None, 2.0, None]
    assert model.report_["best"] == 3
    monkeypatch.setattr(Translator, "_loss", lambda *_: float("nan"))
    with pytest.raises(InputError, match="learning_rate"):
        Translator(**SMALL, epochs=2).fit(encoder, spoken(30, 0), spoken(10, 1), folder=tmp_path / "lost")


@pytest.mark.parametrize(
    ("settings", "train", "message"),
    [
        ({}, Pairs(["a"], ["b", "c"]), "1 sources and 2 targets"),
        ({}, Pairs([], []), "0 sources"),
        ({"dim": 100}, Pairs(["a"], ["b"]), "multiple of 64"),
        ({"epochs": 2, "encoder_epochs": 3}, Pairs(["a"], ["b"]), "encoder_epochs is 3"),
    ],
)
def test_what_cannot_be_is_refused(encoder, tmp_path, settings, train, message):
    with pytest.raises(InputError, match=message):
        Translator(**settings).fit(encoder, train, Pairs(["a"], ["b"]), folder=tmp_path)
    with pytest.raises(NotFittedError):
        Translator(**settings).translate(["a"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_pieces_is_that_of_torch_with_its_gradients(smoothing):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(300, 8), torch.randn(50, 8), torch.randn(50)
    target = torch.randint(0, 50, (300,))
    mine = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    theirs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    loss = decoder.loss_of_rows()(*mine, target, smoothing)
    known = torch.nn.functional.cross_entropy(
        theirs[0] @ theirs[1].T + theirs[2], target, label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(loss, known)
    (loss / 3).backward()
    (known / 3).backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60), st.integers(20, 200))
def test_batches_hold_every_pair_once_and_few_tokens(lengths, size):
    lengths = np.array(lengths)
    for rng in (None, np.random.default_rng(0)):
        batches = decoder.batches_of(lengths, size, rng)
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert all(len(rows) == 1 or len(rows) * lengths[rows, 0].max() <= size for rows in batches)


def test_bleu_is_that_of_sacrebleu_and_gains_are_paired():
    import sacrebleu

    wanted = ["the cat sat on the mat today", "a dog runs in the green park", "two men are talking over there now"] * 20
    good = [text.replace("green", "big") for text in wanted]
    bad = [text.replace("the", "some").replace("are", "is") for text in wanted]
    assert bleu(good, wanted).value == pytest.approx(sacrebleu.corpus_bleu(good, [wanted]).score)
    assert bleu(wanted, wanted).value == pytest.approx(100)
    estimate = bleu(bad, wanted)
    assert estimate.low < estimate.value < estimate.high
    gain = bleu_gain(good, bad, wanted)
    assert gain.low > 0
    assert gain.value == pytest.approx(bleu(good, wanted).value - estimate.value)
    assert bleu_gain(good, good, wanted)[:3] == (0, 0, 0)
    with pytest.raises(InputError, match="3 generated sentences but 2 references"):
        bleu(["a"] * 3, ["a"] * 2)
