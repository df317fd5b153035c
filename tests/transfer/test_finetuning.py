"""Fine-tuning: what it learns on planted relations, exact gradients in pieces, resuming, layers, LoRA, saving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import sentence_model

from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import (
    HashingText,
    PretrainedImage,
    SentenceText,
    encode_items,
    encoder_spec,
    store_encoders,
    stored_encoders,
)
from recotransfer.errors import ArtifactError, InputError
from recotransfer.io.artifacts import ArtifactWriter, open_artifact, write_artifact
from recotransfer.transfer import FineTune, finetuning, objectives

torch = pytest.importorskip("torch")

FLAVOURS = ("sweet sugar honey", "salty sea brine", "sour lemon vinegar", "hot pepper chilli")
SHAPES = ("round", "square", "long", "flat")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A sentence model of two small layers, with random weights and dropout."""
    words = sorted({w for group in (*FLAVOURS, *SHAPES) for w in group.split()} | {f"no{n}" for n in range(200)})
    return sentence_model(tmp_path_factory.mktemp("tiny"), words)


def planted(n=240, users=60, seed=0):
    """Items of one flavour and one shape; a user takes what has their flavour, whatever its shape."""
    rng = np.random.default_rng(seed)
    flavour, shape = rng.integers(0, 4, n), rng.integers(0, 4, n)
    word = [FLAVOURS[f].split()[k] for f, k in zip(flavour, rng.integers(0, 3, n), strict=True)]
    titles = [f"{SHAPES[s]} {w} no{rng.integers(200)}" for s, w in zip(shape, word, strict=True)]
    items = Items(IdMap([f"i{i}" for i in range(n)]), pd.DataFrame({"title": titles}), {"title": "text"})
    rows = [(f"u{u}", f"i{i}") for u in range(users) for i in rng.choice(np.flatnonzero(flavour == u % 4), 12, False)]
    return items, Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item"]), items=items.ids), flavour


def quick(tmp_path, **settings) -> FineTune:
    usual = {"folder": tmp_path / "run", "epochs": 3, "learning_rate": 2e-3, "batch_size": 32}
    return FineTune(**{**usual, **settings})


def apart(vectors, kind) -> float:
    """Mean cosine within a kind less that between kinds."""
    vectors = vectors - vectors.mean(0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same = kind[:, None] == kind[None]
    return float((unit @ unit.T)[same].mean() - (unit @ unit.T)[~same].mean())


@pytest.mark.parametrize("objective", ["pairs", "elsa"])
def test_items_that_go_together_come_together(tiny, tmp_path, objective):
    items, relations, flavour = planted()
    encoder = SentenceText(model=tiny)
    tuner = quick(tmp_path, objective=objective, epochs=3)
    tuned = tuner.tune(encoder, items, relations)
    before, after = (encode_items(items, e).embeddings.vectors for e in (encoder, tuned))
    assert apart(after, flavour) > apart(before, flavour) + 0.2
    curve = tuner.report_["curve"]
    assert curve[tuner.report_["best"]]["valid"] > curve[0]["valid"] + 0.01
    np.testing.assert_array_equal(encode_items(items, SentenceText(model=tiny)).embeddings.vectors, before)
    assert tuned.name != encoder.name


def test_where_training_does_only_harm_the_weights_stay_as_they_came(tiny, tmp_path, monkeypatch):
    def forget(run, batch):
        """A step after which all texts are alike: the worst that training can do, and the same on every machine."""
        for weight in run.weights.values():
            weight.data.zero_()
        return 1.0

    items, relations, flavour = planted(120)
    titles = [f"{FLAVOURS[f]} {FLAVOURS[f]} no{n}" for n, f in enumerate(flavour)]  # chance weights read them well
    items = replace(items, columns=pd.DataFrame({"title": titles}))
    encoder = SentenceText(model=tiny)
    monkeypatch.setattr(finetuning._Run, "_learn", forget)
    tuner = quick(tmp_path, objective="pairs", epochs=6)
    tuned = tuner.tune(encoder, items, relations)
    curve = [point["valid"] for point in tuner.report_["curve"]]
    assert max(curve[1:]) < curve[0] - 0.2
    assert tuner.report_["best"] == 0
    assert len(curve) == 3  # two epochs without a better one end it
    assert not changed(encoder, tuned)


def test_held_out_items_that_no_other_item_s_user_has_leave_nothing_to_choose_by(tiny, tmp_path):
    items, relations, _ = planted(60)
    held = items.ids.take(objectives.related(SentenceText(model=tiny), items, relations).valid)
    at = items.ids.positions(held)
    user = np.where(np.isin(relations.item, at), 60 + relations.item, relations.user)  # each is the one of its user
    alone = Interactions(IdMap(range(120)), items.ids, user, relations.item, relations.weight)
    encoder, tuner = SentenceText(model=tiny), quick(tmp_path, objective="pairs", epochs=3)
    tuned = tuner.tune(encoder, items, alone)
    assert [point["valid"] for point in tuner.report_["curve"]] == [None] * 4
    assert tuner.report_["best"] == 3, "the last, as where nothing is held out"
    assert changed(encoder, tuned)


def test_an_epoch_whose_score_is_no_number_is_never_the_best(tiny, tmp_path, monkeypatch):
    items, relations, _ = planted(60)
    scores = iter([float("nan"), 0.3, float("nan"), 0.2])
    monkeypatch.setattr(finetuning._Run, "_score", lambda run: next(scores))
    tuner = quick(tmp_path, epochs=3)
    tuner.tune(SentenceText(model=tiny), items, relations)
    assert [point["valid"] for point in tuner.report_["curve"]] == [None, 0.3, None, 0.2]
    assert tuner.report_["best"] == 1


@pytest.mark.parametrize(("last_bits", "best"), [(1e-9, 1), (-1e-9, 1), (1e-3, 3)], ids=["above", "below", "better"])
def test_a_score_that_differs_by_rounding_alone_does_not_move_the_best_epoch(
    tiny, tmp_path, monkeypatch, last_bits, best
):
    items, relations, _ = planted(60)
    scores = iter([0.2, 0.3, 0.25, 0.3 + last_bits])
    monkeypatch.setattr(finetuning._Run, "_score", lambda run: next(scores))
    tuner = quick(tmp_path, epochs=3)
    tuner.tune(SentenceText(model=tiny), items, relations)
    assert tuner.report_["best"] == best


def test_labels_are_the_default_where_every_item_has_one_user(tiny, tmp_path):
    items, _, flavour = planted()
    labels = Interactions.from_labels([f"flavour {f}" for f in flavour], items.ids)
    tuner = quick(tmp_path)
    tuned = tuner.tune(SentenceText(model=tiny), items, labels)
    assert tuner.report_["objective"] == "labels"
    assert max(point["valid"] for point in tuner.report_["curve"]) >= 0.95
    assert apart(encode_items(items, tuned).embeddings.vectors, flavour) > 0.2


def test_items_of_several_labels_learn_each_by_itself(tiny, tmp_path):
    items, _, flavour = planted()
    both = np.concatenate([np.arange(len(items)), np.arange(len(items))])
    user = np.concatenate([flavour, 4 + flavour // 2])
    relations = Interactions(IdMap(range(6)), items.ids, user, both, np.ones(len(both), np.float32))
    tuner = quick(tmp_path, objective="labels")
    tuner.tune(SentenceText(model=tiny), items, relations)
    curve = [point["valid"] for point in tuner.report_["curve"]]
    assert curve[0] < max(curve) <= 0


def a_run(tiny, tmp_path, **settings):
    items, relations, _ = planted(120)
    tuner, encoder = quick(tmp_path, **settings), SentenceText(model=tiny)
    data = objectives.related(encoder, items, relations)
    return finetuning._Run(tuner, encoder, data, tuner._objective(data), {})


def test_a_relation_of_weight_0_or_less_is_none(tiny):
    items, relations, _ = planted(60)
    weight = np.where(relations.item % 3 == 0, 0, np.where(relations.user % 5 == 0, -1, 1)).astype(np.float32)
    encoder = SentenceText(model=tiny)
    told = objectives.related(encoder, items, replace(relations, weight=weight))
    wanted = objectives.related(encoder, items, relations.select(weight > 0))
    np.testing.assert_array_equal(told.taken.toarray(), wanted.taken.toarray())
    assert told.values == wanted.values


@pytest.mark.parametrize("objective", ["labels", "pairs", "elsa"])
def test_gradients_taken_in_pieces_equal_those_of_the_whole_batch(tiny, tmp_path, monkeypatch, objective):
    found = []
    for memory in (1 << 40, 0):
        monkeypatch.setattr(finetuning, "_MEMORY", memory)
        run = a_run(tiny, tmp_path, objective=objective, batch_size=64)
        run.half = False
        run.module.train()  # with dropout: both passes over a piece must draw alike
        batch = run.objective.epoch(np.random.default_rng(0))[0]
        assert len(run._pieces(batch.items)) > 1
        loss = run.gradients(batch)
        found.append((loss, {n: w.grad.clone() for n, w in run.weights.items() if w.grad is not None}))
    (whole, direct), (pieces, cached) = found
    assert whole == pytest.approx(pieces, rel=1e-6)
    assert direct.keys() == cached.keys()
    assert len(direct) > 10
    for name in direct:
        torch.testing.assert_close(cached[name], direct[name], rtol=1e-4, atol=1e-6)


def test_the_drawn_pairs_are_of_one_user_and_their_chances_as_stated(tiny, tmp_path):
    run = a_run(tiny, tmp_path, objective="pairs")
    goal, counts = run.objective, np.zeros(len(run.data.values))
    together = (goal.known.T @ goal.known).toarray()
    rng = np.random.default_rng(0)
    draws = 400
    for _ in range(draws):
        for batch in goal.epoch(rng):
            anchor, partner = (batch.items[part] for part in batch.parts)
            assert (anchor != partner).all()
            assert (together[anchor, partner] > 0).all()
            np.add.at(counts, batch.items[np.concatenate(batch.parts)], 1)
    stated = np.exp(goal.log_share)
    shown = np.flatnonzero(counts)
    assert not counts[run.data.valid].any()
    np.testing.assert_allclose(counts[shown] / draws, stated[shown], rtol=0.15)


def test_batches_of_labelled_texts_are_of_like_length_and_hold_every_item_once(tiny):
    items, _, flavour = planted(1000)
    titles = [f"{title} {'no1 ' * (n % 12)}" for n, title in enumerate(items.columns["title"])]
    longer = Items(items.ids, pd.DataFrame({"title": titles}), {"title": "text"})
    labels = Interactions.from_labels(flavour.tolist(), items.ids)
    data = objectives.related(SentenceText(model=tiny), longer, labels)
    goal = objectives._Labels(data, 32, 0)
    found = [[batch.items for batch in goal.epoch(np.random.default_rng(seed))] for seed in (0, 0, 1)]
    lengths = np.array([len(value) for value in data.values])
    spread = np.mean([np.ptp(lengths[rows]) for rows in found[0]])
    assert spread < 0.6 * np.ptp(lengths)
    assert all(sorted(np.concatenate(each)) == data.train.tolist() for each in found)
    assert all(np.array_equal(a, b) for a, b in zip(*found[:2], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("settings", [{}, {"lora": 4}, {"trainable_layers": "gradual"}])
def test_a_killed_run_goes_on_and_ends_the_same(tiny, tmp_path, monkeypatch, settings):
    items, relations, _ = planted(120)
    encoder = SentenceText(model=tiny, precision="float32")
    whole = quick(tmp_path / "whole", **settings)
    wanted = whole.tune(encoder, items, relations).encode(["round sweet no1", "flat hot no2"])
    monkeypatch.setattr(finetuning, "_SAVE_SECONDS", 0.0)
    steps = 0
    learn = finetuning._Run._learn

    def dies(run, batch):
        nonlocal steps
        steps += 1
        if steps in (2, 5):
            raise KeyboardInterrupt
        return learn(run, batch)

    monkeypatch.setattr(finetuning._Run, "_learn", dies)
    again = quick(tmp_path / "again", **settings)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again.tune(encoder, items, relations)
    found = again.tune(encoder, items, relations).encode(["round sweet no1", "flat hot no2"])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    points = [[{k: v for k, v in p.items() if k != "seconds"} for p in t.report_["curve"]] for t in (whole, again)]
    assert points[0] == points[1]
    assert not (tmp_path / "again" / "run" / "checkpoint.safetensors").exists()


def test_a_finished_run_is_only_read_and_another_is_refused(tiny, tmp_path, monkeypatch):
    items, relations, _ = planted(60)
    encoder = SentenceText(model=tiny)
    tuner = quick(tmp_path, epochs=1)
    first = tuner.tune(encoder, items, relations)
    report = tuner.report_
    monkeypatch.setattr(finetuning._Run, "train", lambda run: pytest.fail("trained again"))
    twin = quick(tmp_path, epochs=1)
    assert twin.tune(encoder, items, relations).name == first.name
    assert twin.report_ == report
    with pytest.raises(InputError, match="another learning_rate"):
        quick(tmp_path, epochs=1, learning_rate=1e-3).tune(encoder, items, relations)
    reworded = Items(items.ids, items.columns.assign(title="flat"), {"title": "text"})
    with pytest.raises(InputError, match="another items"):
        quick(tmp_path, epochs=1).tune(encoder, reworded, relations)


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"\x80\x04nonsense")
    items, relations, _ = planted(60)
    with pytest.raises(InputError, match=r"checkpoint.safetensors is damaged"):
        quick(tmp_path).tune(SentenceText(model=tiny), items, relations)


def changed(encoder, tuned):
    before, after = (dict(e.network.named_parameters()) for e in (encoder, tuned))
    assert before.keys() == after.keys()  # LoRA leaves no trace
    return {name for name in before if not torch.equal(before[name], after[name])}


def kept_last(monkeypatch):
    """The last epoch is kept, so that a test sees what was trained."""
    monkeypatch.setattr(objectives, "_HELD_OUT", 0.0)


def test_only_the_top_layers_learn(tiny, tmp_path, monkeypatch):
    kept_last(monkeypatch)
    items, relations, _ = planted(60)
    encoder = SentenceText(model=tiny)
    names = changed(encoder, quick(tmp_path, epochs=1, trainable_layers=1).tune(encoder, items, relations))
    assert names
    assert all("layer.1." in name or "pooler" in name for name in names)


def test_layers_are_unfrozen_from_the_top_one_an_epoch(tiny, tmp_path, monkeypatch):
    kept_last(monkeypatch)
    items, relations, _ = planted(60)
    encoder = SentenceText(model=tiny)
    seen = []
    for epochs in (1, 2, 3):
        tuner = quick(tmp_path / str(epochs), epochs=epochs, trainable_layers="gradual")
        seen.append(changed(encoder, tuner.tune(encoder, items, relations)))
    first, second, third = ({n.partition("layer.")[2][:1] or "embeddings" for n in names} for names in seen)
    assert (first, second, third) == ({"1"}, {"0", "1"}, {"0", "1", "embeddings"})


@pytest.fixture(scope="module")
def bare(tmp_path_factory, tiny) -> Path:
    """A sentence model of two small layers that no weight follows."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    root = tmp_path_factory.mktemp("bare")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(root / "base")
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    DistilBertModel(config).save_pretrained(root / "base")
    network = SentenceTransformer(modules=[Transformer(str(root / "base")), Pooling(32)], device="cpu")
    network.save(str(root / "model"), create_model_card=False)
    return root / "model"


@pytest.mark.parametrize(
    ("layers", "learning"),
    [(1, {"1"}), (2, {"0", "1"}), (3, {"0", "1", "embeddings"}), ("gradual", {"1"}), (0, None)],
)
def test_layers_are_counted_alike_where_no_weight_follows_them(bare, tmp_path, monkeypatch, layers, learning):
    kept_last(monkeypatch)
    items, relations, _ = planted(60)
    encoder, tuner = SentenceText(model=bare), quick(tmp_path, epochs=1, trainable_layers=layers)
    if learning is None:
        with pytest.raises(InputError, match="trainable_layers=0 leaves nothing to train"):
            tuner.tune(encoder, items, relations)
        return
    names = changed(encoder, tuner.tune(encoder, items, relations))
    assert {n.partition("layer.")[2][:1] or "embeddings" for n in names} == learning


def test_lower_layers_and_fresh_weights_have_rates_of_their_own(tiny, tmp_path):
    run = a_run(tiny, tmp_path, objective="labels", layer_decay=0.5, learning_rate=1e-3)
    rates = {(g.depth, "head" in next(iter(g.params))): g.rate for g in run.groups}
    assert rates == {
        (0, False): 1.25e-4, (1, False): 2.5e-4, (2, False): 5e-4, (3, False): 1e-3, (3, True): 1e-2
    }  # fmt: skip
    decays = {name: g.decay for g in run.groups for name in g.params}
    assert all((decay == 0) == (run.weights[name].ndim < 2) for name, decay in decays.items())


def test_lora_learns_and_is_merged_into_a_plain_model(tiny, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    kept_last(monkeypatch)
    items, relations, flavour = planted()
    encoder = SentenceText(model=tiny)
    tuned = quick(tmp_path, lora=4, trainable_layers=1).tune(encoder, items, relations)
    names = changed(encoder, tuned)
    assert names
    assert all("layer.1." in name and name.endswith("weight") and "LayerNorm" not in name for name in names)
    before, after = (encode_items(items, e).embeddings.vectors for e in (encoder, tuned))
    assert apart(after, flavour) > apart(before, flavour)


def test_values_are_augmented_anew_in_training_and_never_in_validation(tiny, tmp_path):
    items, relations, _ = planted(60)
    seen = []

    def shout(value, rng):
        seen.append((value, int(rng.integers(1 << 30))))
        return value

    plain = quick(tmp_path / "plain", epochs=2).tune(SentenceText(model=tiny), items, relations)
    tuner = quick(tmp_path, epochs=2, augment=shout)
    tuned = tuner.tune(SentenceText(model=tiny), items, relations)
    trained = [v for v in items.columns["title"] if v in {value for value, _ in seen}]
    assert 40 < len(trained) <= 60 - tuner.report_["held_out"]
    assert len({draw for _, draw in seen}) > len(trained)
    np.testing.assert_array_equal(tuned.encode(["round"]), plain.encode(["round"]))


def test_items_without_text_or_relations_are_left_out(tiny, tmp_path):
    items, relations, _ = planted(60)
    titles = items.columns["title"].where(np.arange(60) % 3 > 0, None)
    fewer = Items(items.ids, pd.DataFrame({"title": titles}), {"title": "text"})
    tuner = quick(tmp_path, epochs=1)
    tuner.tune(SentenceText(model=tiny), fewer, relations)
    assert tuner.report_["items"] + tuner.report_["held_out"] <= 40
    nothing = Items(items.ids, pd.DataFrame({"title": [None] * 60}), {"title": "text"})
    with pytest.raises(InputError, match="0 related items have content"):
        quick(tmp_path / "other").tune(SentenceText(model=tiny), nothing, relations)


@pytest.mark.parametrize(
    "settings",
    [{"objective": "triplets"}, {"epochs": 0}, {"batch_size": True}, {"lora": 0}, {"trainable_layers": -1},
     {"trainable_layers": "some"}, {"learning_rate": 0.0}, {"layer_decay": 1.5}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path, settings):
    items, relations, _ = planted(60)
    with pytest.raises(InputError, match=next(iter(settings))):
        quick(tmp_path, **settings).tune(SentenceText(), items, relations)


# The encoders' side


def test_the_training_form_of_text_gives_the_vectors_of_the_encoder(tiny):
    encoder = SentenceText(model=tiny, precision="float32")
    texts = ["round sweet no1", "flat", "hot pepper"]
    module = encoder.module().eval()
    with torch.inference_mode():
        pooled, dense, mask = module(encoder.collate(texts))
    np.testing.assert_allclose(pooled.numpy(), encoder.encode(texts), atol=1e-4)
    assert dense.shape == (3, 5, 32)
    assert mask.sum(1).tolist() == [5, 3, 4]
    module.network[0].auto_model.embeddings.word_embeddings.weight.data.zero_()  # a copy: the encoder is unmoved
    assert np.abs(encoder.encode(texts)).sum() > 0


def test_tuned_and_given_encoders_are_stored_with_a_task(tiny, tmp_path):
    encoder = SentenceText(model=tiny, column=["title"], max_length=9)
    tuned = encoder.saved(encoder.module(), tmp_path / "tuned")
    assert encoder_spec(tuned) == {**encoder_spec(encoder), "model": str(tmp_path / "tuned")}
    specs = []
    write_artifact(
        tmp_path / "task", "Test", lambda w: specs.extend(store_encoders([tuned, encoder, HashingText()], w))
    )
    (tmp_path / "tuned").rename(tmp_path / "gone")
    (tmp_path / "task").rename(tmp_path / "moved")
    back = stored_encoders(specs, open_artifact(tmp_path / "moved"))
    name = (tmp_path / "gone").rename(tmp_path / "tuned") and tuned.name
    assert back[0].folder == tmp_path / "moved" / "encoder 0" / "tuned"
    assert back[0].name == name
    assert back[1].folder == tmp_path / "moved" / "encoder 1" / tiny.name
    assert back[1].name == encoder.name
    assert encoder_spec(back[2]) == encoder_spec(HashingText())
    np.testing.assert_array_equal(back[0].encode(["round sweet"]), encoder.encode(["round sweet"]))
    weights = tmp_path / "moved" / "encoder 0" / "tuned" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(ArtifactError, match="truncated or edited"):
        open_artifact(tmp_path / "moved")


def test_files_that_could_run_are_neither_stored_nor_read_with_a_model(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pytorch_model.bin is neither"):
        write_artifact(tmp_path / "a", "Test", lambda w: w.folder_of_model("m", model))
    (model / "pytorch_model.bin").unlink()
    write_artifact(tmp_path / "a", "Test", lambda w: w.folder_of_model("m", model))
    (tmp_path / "a" / "m" / "model" / "modeling.py").write_text("1")
    with pytest.raises(ArtifactError, match="was not saved with the model"):
        open_artifact(tmp_path / "a").folder_of_model("m")

    def sly(writer: ArtifactWriter) -> None:
        (writer.folder / "m" / "x").mkdir(parents=True)
        (writer.folder / "m" / "x" / "modeling.py").write_text("1")

    write_artifact(tmp_path / "b", "Test", sly)
    with pytest.raises(ArtifactError, match=r"modeling.py is neither"):
        open_artifact(tmp_path / "b").folder_of_model("m")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a//b", "a/./b"])
def test_parts_outside_the_folder_are_refused(tmp_path, name):
    write_artifact(tmp_path / "a" / "b", "Test", lambda w: w.json("x", 1))
    (tmp_path / "a" / "outside").write_text("1")
    manifest = tmp_path / "a" / "b" / "manifest.json"
    held = json.loads(manifest.read_text())
    held["parts"][name] = {"sha256": "0", "bytes": 1}
    manifest.write_text(json.dumps(held))
    with pytest.raises(ArtifactError, match="missing"):
        open_artifact(tmp_path / "a" / "b")


def test_a_trained_model_takes_the_place_of_another_but_of_nothing_else(tiny, tmp_path):
    encoder = SentenceText(model=tiny)
    encoder.saved(encoder.module(), tmp_path / "tuned")
    encoder.saved(encoder.module(), tmp_path / "tuned")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="holds other files"):
        encoder.saved(encoder.module(), tmp_path / "mine")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["mine", "tuned"]


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """Small vision models with random weights: a transformer and a convolutional one."""
    pytest.importorskip("PIL")
    from transformers import MobileNetV2Config, MobileNetV2Model, ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    root = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    models = {
        "vit": ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False),
        "mobilenet": MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, image_size=32)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / name)
    return root


def pictures(n=80):
    """Pictures of three colours with noise over them."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, n)
    images = rng.integers(0, 200, (n, 32, 32, 3)).astype(np.uint8)
    images[np.arange(n), :, :, kind] += 30
    column = pd.Series(list(images), dtype=object)
    items = Items(IdMap(range(n)), pd.DataFrame({"image": column}), {"image": "image"})
    return items, Interactions.from_labels(kind.tolist(), items.ids), kind


@pytest.mark.parametrize(("name", "patches"), [("vit", 16), ("mobilenet", 1)])
def test_the_training_form_of_pictures_gives_the_vectors_of_the_encoder(vision, name, patches):
    items, _, _ = pictures(3)
    encoder = PretrainedImage(model=vision / name)
    values = encoder.values(items)
    with torch.inference_mode():
        pooled, dense, mask = encoder.module().eval()(encoder.collate(values))
    np.testing.assert_allclose(pooled.numpy(), encoder.encode(values), atol=1e-4)
    assert dense.shape[:2] == (3, patches)
    assert mask is None


@pytest.mark.parametrize("name", ["vit", "mobilenet"])
def test_a_picture_encoder_learns_labels_and_is_saved_as_a_plain_model(vision, tmp_path, name):
    items, labels, _ = pictures()
    encoder = PretrainedImage(model=vision / name, workers=1)
    tuner = quick(tmp_path, epochs=2, batch_size=16, learning_rate=1e-3)
    tuned = tuner.tune(encoder, items, labels)
    assert tuned.name != encoder.name
    assert encoder_spec(tuned) == {**encoder_spec(encoder), "model": encoder_spec(tuned)["model"]}
    vectors = tuned.encode(tuned.values(items))
    assert np.isfinite(vectors).all()
    curve = [point["loss"] for point in tuner.report_["curve"][1:]]
    assert curve[-1] < curve[0]
    if name == "mobilenet":  # the statistics of batch norms stay as they came
        old, new = (dict(e._network.model.named_buffers()) for e in (encoder, tuned))
        assert all(torch.equal(old[key], new[key]) for key in old if "running" in key)
