"""Altered items, confident predictions as labels, labels under other names."""

import io
import unittest.mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recotransfer.data import Embeddings, IdMap, Interactions, Items, Recommendations
from recotransfer.encoders import image
from recotransfer.errors import InputError
from recotransfer.recommenders import Probe, RidgeProfiles
from recotransfer.transfer import ImageNoise, TextNoise, augmentation, augmented, map_labels, pseudo_labels


def rng(seed=0):
    return np.random.default_rng(seed)


# -- texts -------------------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=80), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_texts_are_never_emptied_and_repeat_by_seed(text, seed):
    noise = TextNoise(drop=1.0, keep=0.1, swap=1.0, typo=1.0)
    out = noise(text, rng(seed))
    assert bool(out) == bool(text.split())
    assert noise(text, rng(seed)) == out


def test_each_setting_does_its_own():
    text = " ".join(f"word{i}" for i in range(50))
    words = text.split()
    off = {"drop": 0, "keep": 1, "swap": 0, "typo": 0}
    assert TextNoise(**off)(text, rng()) == text
    dropped = [len(TextNoise(**{**off, "drop": 0.3})(text, rng(s)).split()) for s in range(50)]
    assert 0.62 < np.mean(dropped) / 50 < 0.78
    spans = [TextNoise(**{**off, "keep": 0.4})(text, rng(s)) for s in range(50)]
    assert all(span in text and 20 <= len(span.split()) <= 50 for span in spans)
    assert len({len(s.split()) for s in spans}) > 10
    swapped = TextNoise(**{**off, "swap": 0.5})(text, rng()).split()
    assert sorted(swapped) == sorted(words)
    assert swapped != words
    wrong = TextNoise(**{**off, "typo": 1.0})(text, rng()).split()
    assert len(wrong) == 50
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(wrong, words, strict=True))
    assert np.mean([a != b for a, b in zip(wrong, words, strict=True)]) > 0.9


@pytest.mark.parametrize("bad", [{"drop": -0.1}, {"keep": 1.5}, {"typo": "much"}])
def test_impossible_text_settings_are_refused_by_name(bad):
    with pytest.raises(InputError, match=rf"TextNoise: {next(iter(bad))} must (lie between 0 and 1|be a number)"):
        TextNoise(**bad)


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(height=40, width=60):
    """Red grows to the right, green downwards; blue marks the left edge."""
    out = np.zeros((height, width, 3), np.uint8)
    out[..., 0] = np.linspace(0, 250, width)
    out[..., 1] = np.linspace(0, 250, height)[:, None]
    out[:, :10, 2] = 200
    return out


OFF = {"crop": 1.0, "flip": 0.0, "turn": 0.0, "light": 0.0, "colour": 0.0, "erase": 0.0}


def test_nothing_asked_is_the_same_picture_from_any_form(tmp_path):
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "p.png")
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    held = {"bytes": stored.getvalue(), "path": None}
    for value in (pixels, tmp_path / "p.png", str(tmp_path / "p.png"), stored.getvalue(), held, Image.open(stored)):
        np.testing.assert_array_equal(ImageNoise(**OFF)(value, rng()), pixels)


def test_pictures_are_read_as_the_encoder_reads_them(monkeypatch):
    stored, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # a camera held on its side
    Image.fromarray(picture(20, 30)).save(stored, "PNG", exif=turned)
    np.testing.assert_array_equal(ImageNoise(**OFF)(stored.getvalue(), rng()), np.rot90(picture(20, 30), -1))
    grey = picture()[..., :1]
    np.testing.assert_array_equal(ImageNoise(**OFF)(grey, rng()), grey.repeat(3, axis=2))
    monkeypatch.setattr(image, "_MAX_PIXELS", 100)
    with pytest.raises(InputError, match="pixels, more than 100"):
        ImageNoise()(picture(), rng())


@given(share=st.floats(0, 1), seed=st.integers(0, 999), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_a_crop_keeps_its_share_of_the_area(share, seed, height, width):
    kept = []

    class Watched(Image.Image):
        def resize(self, size, *how, box):
            kept.append((box[2] - box[0]) * (box[3] - box[1]) / (height * width))
            assert 0 <= box[0] < box[2] <= width
            assert 0 <= box[1] < box[3] <= height
            return super().resize(size, *how, box=box)

    whole = Image.fromarray(picture(height, width))
    whole.__class__ = Watched
    with unittest.mock.patch.object(augmentation, "decode", return_value=whole):
        ImageNoise(**{**OFF, "crop": share})(None, rng(seed))
    assert kept[0] >= share - 1e-9


def test_crops_are_of_many_shapes_and_areas():
    across = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None], (200, 200))
    place = np.stack([across, across.T, across], axis=2)
    crops = [ImageNoise(**{**OFF, "crop": 0.3})(place, rng(seed)) for seed in range(60)]
    sides = np.array([[np.ptp(crop[..., axis].astype(int)) for axis in (0, 1)] for crop in crops])
    areas, ratios = sides.prod(axis=1) / 200**2, sides[:, 0] / sides[:, 1]
    assert areas.min() < 0.4
    assert areas.max() > 0.9
    assert ratios.min() < 0.75
    assert ratios.max() > 1.33


def test_each_way_to_alter_a_picture_does_its_own():
    pixels = picture()
    before = pixels.copy()

    def made(seed=0, **settings):
        return ImageNoise(**{**OFF, **settings})(pixels, rng(seed))

    np.testing.assert_array_equal(made(flip=1.0), pixels[:, ::-1])
    cropped = made(crop=0.3).astype(int)
    assert min(np.ptp(cropped[..., 0]), np.ptp(cropped[..., 1])) < 225
    assert abs(np.diff(cropped[..., 0], axis=1)).max() < 30, "a crop is enlarged, not tiled"
    turned = made(turn=30.0).astype(int)
    assert abs(turned[20, 30] - pixels[20, 30]).max() < 30, "it turns about the middle"
    assert abs(turned[:, 0] - pixels[:, 0].astype(int)).mean() > 5
    light = [made(seed, light=0.5).mean() for seed in range(20)]
    assert min(light) < 0.8 * pixels.mean() < 1.1 * pixels.mean() < max(light)
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    np.testing.assert_allclose(ImageNoise(**{**OFF, "colour": 1.0})(grey, rng()), grey, atol=2)
    assert not np.array_equal(made(colour=1.0), pixels)
    erased = (made(erase=1.0) != pixels).any(axis=2)
    rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
    assert 0.01 < erased.mean() < 0.25
    assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.95, "one patch"
    np.testing.assert_array_equal(pixels, before)


@given(height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pictures_of_any_size_keep_it(height, width, seed):
    out = ImageNoise(crop=0.1, turn=90, erase=1.0)(picture(height, width), rng(seed))
    assert out.shape == (height, width, 3)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(ImageNoise(crop=0.1, turn=90, erase=1.0)(picture(height, width), rng(seed)), out)


def test_no_picture_and_impossible_settings_are_named():
    with pytest.raises(InputError, match="the picture cannot be decoded"):
        ImageNoise()(b"not a picture", rng())
    with pytest.raises(InputError, match=r"cannot be decoded .*nowhere\.png"):
        ImageNoise()("nowhere.png", rng())
    with pytest.raises(InputError, match="turn must lie between 0 and 180"):
        ImageNoise(turn=200)


# -- catalogues --------------------------------------------------------------------------------------------------------


def catalogue():
    frame = pd.DataFrame({"title": ["red wool hat", None, "blue cotton shirt for men"], "price": [1.0, 2.0, 3.0]})
    return Items(IdMap(["a", "b", "c"]), frame, {"title": "text", "price": "number"})


def test_copies_have_other_text_the_same_rest_and_the_same_users():
    items = catalogue()
    relations = Interactions.from_labels(["warm", "warm", "cool"], items.ids)
    out = augmented(items, relations, {"title": TextNoise(drop=0.5)}, copies=2, seed=3)
    assert out.items.ids.ids.tolist() == ["a", "b", "c", "a copy 1", "b copy 1", "c copy 1", "a copy 2", "b copy 2",
                                          "c copy 2"]  # fmt: skip
    assert out.items.columns["price"].tolist() == [1.0, 2.0, 3.0] * 3
    assert out.items.columns["title"].tolist()[:3] == items.columns["title"].tolist()
    assert out.items.columns["title"].isna().tolist() == [False, True, False] * 3
    assert out.items.kinds == items.kinds
    held = [out.relations.users.ids[out.relations.user[out.relations.item == i]].tolist() for i in range(9)]
    assert held == [["warm"], ["warm"], ["cool"]] * 3
    again = augmented(items, relations, {"title": TextNoise(drop=0.5)}, copies=2, seed=3)
    pd.testing.assert_frame_equal(again.items.columns, out.items.columns)
    more = augmented(items, relations, {"title": TextNoise(drop=0.5)}, copies=3, seed=3)
    assert more.items.columns["title"].tolist()[:9] == out.items.columns["title"].tolist()


@pytest.mark.parametrize("nothing", [None, pd.NA, float("nan"), "", "  "])
def test_missing_text_stays_missing_in_copies(nothing):
    items = Items(IdMap(["a", "b"]), pd.DataFrame({"title": pd.Series(["red hat", nothing], dtype=object)}))
    out = augmented(items, Interactions.from_labels(["x", "y"], items.ids), {"title": TextNoise()})
    assert out.items.columns["title"][3] is None


def test_augmenting_again_numbers_on():
    items = catalogue()
    first = augmented(items, Interactions.from_labels(["x", "x", "y"], items.ids), {"title": TextNoise(drop=0.5)})
    again = augmented(*first, {"title": TextNoise(drop=0.5)}, copies=2)
    assert again.items.ids.ids.tolist()[6:9] == ["a copy 2", "b copy 2", "c copy 2"]
    assert again.items.ids.ids.tolist()[-1] == "c copy 1 copy 3"
    holders = again.relations.users.take(again.relations.user)
    held = dict(zip(again.relations.items.take(again.relations.item), holders, strict=True))
    assert (held["c copy 1 copy 3"], held["c copy 2"], held["a copy 3"]) == ("y", "y", "x")


def test_content_that_cannot_be_altered_is_named_with_its_item():
    items = Items(IdMap(["a", "b"]), pd.DataFrame({"image": [picture(), b"broken"]}))
    with pytest.raises(
        InputError, match=r"item 'b', image: the picture cannot be decoded .*; mend it, or leave it out"
    ):
        augmented(items, Interactions.from_labels(["x", "y"], items.ids), {"image": ImageNoise()})


def test_relations_of_other_items_and_times_are_kept():
    items = catalogue()
    frame = pd.DataFrame({"user": ["u", "u"], "item": ["c", "elsewhere"], "time": [5.0, 6.0]})
    out = augmented(items, Interactions.from_frame(frame, time="time"), {"title": TextNoise()}).relations
    assert out.items.take(out.item).tolist() == ["c", "elsewhere", "c copy 1"]
    assert out.time.tolist() == [5.0, 6.0, 5.0]


def test_augmenting_what_is_not_there_is_refused():
    items = catalogue()
    relations = Interactions.from_labels(["x", "x", "y"], items.ids)
    with pytest.raises(InputError, match="augmenters name 'text'"):
        augmented(items, relations, {"text": TextNoise()})
    with pytest.raises(InputError, match="copies must be at least 1"):
        augmented(items, relations, {"title": TextNoise()}, copies=0)


# -- pseudo-labels -----------------------------------------------------------------------------------------------------


def said(scores, labels="xyz"):
    """What `label` gives for probabilities (items, labels), the two best of each."""
    scores = np.array(scores, np.float32)
    order = np.argsort(-scores, axis=1)[:, :2]
    ids = np.array([f"i{n}" for n in range(len(scores))])
    return Recommendations(ids, IdMap(list(labels)), order, np.take_along_axis(scores, order, axis=1))


def test_only_confident_predictions_become_labels():
    found = said([[0.97, 0.02, 0.01], [0.5, 0.3, 0.2], [0.02, 0.96, 0.02]])
    out = pseudo_labels(found, adapt=False)
    assert out.items.take(out.item).tolist() == ["i0", "i2"]
    assert out.users.take(out.user).tolist() == ["x", "y"]
    np.testing.assert_allclose(out.weight, [0.97, 0.96])


def test_labels_that_few_predictions_reach_have_a_lower_bar_and_no_label_floods():
    easy, hard, lost = [0.99, 0.01, 0], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]
    found = said([easy] * 10 + [[0.03, 0.96, 0.01]] + [hard] * 5 + [lost])
    fixed, adapted = pseudo_labels(found, adapt=False), pseudo_labels(found)
    assert np.bincount(fixed.user, minlength=3).tolist() == [10, 1, 0]
    assert np.bincount(adapted.user, minlength=3).tolist() == [10, 6, 0]
    few = pseudo_labels(found, most=3)
    assert np.bincount(few.user, minlength=3).tolist() == [3, 3, 0]
    assert "i10" in few.items.take(few.item), "the surest come first"


def test_scores_that_are_no_probabilities_are_refused():
    with pytest.raises(InputError, match=r"probabilities, got .* 3"):
        pseudo_labels(said([[3.0, 1.0, 0.0]]))
    with pytest.raises(InputError, match="threshold"):
        pseudo_labels(said([[1.0, 0.0, 0.0]]), threshold=2)


def test_self_training_follows_classes_that_move_step_by_step():
    """Gradual self-training (Kumar, Ma and Liang, 2020): both classes turn by 8 degrees a step from labels."""
    generator = rng(1)
    truth = np.arange(100) % 2
    names = np.where(truth, "odd", "even")

    def step(number):
        angle = np.deg2rad(8 * number)
        centre = 2 * np.where(truth, 1, -1)[:, None] * np.array([np.cos(angle), np.sin(angle)])
        vectors = centre + 0.5 * generator.normal(size=(100, 2))
        return Embeddings(IdMap([f"{number}/{n}" for n in range(100)]), vectors.astype(np.float32))

    def right(model, items):
        found = model.label(items)
        return (found.catalogue.take(found.positions[:, 0]) == names).mean()

    model = first = Probe(reg=1.0).fit(Interactions.from_labels(names, step(0).ids), step(0))
    for number in range(1, 13):
        items = step(number)
        model = Probe(reg=1.0).fit(pseudo_labels(model.label(items), threshold=0.8), items)
    assert right(first, items) < 0.7
    assert right(model, items) > 0.95


# -- label mapping -----------------------------------------------------------------------------------------------------


def labels(names, ids=None):
    return Interactions.from_labels(names, IdMap([f"i{n}" for n in range(len(names))]) if ids is None else ids)


def test_labels_are_matched_by_the_items_that_both_sets_label():
    source = labels(["cat", "cat", "dog", "dog", "bird", None])
    target = labels(["feline", "feline", "canine", "canine", "canine", "fish"])
    found = map_labels(source, target)
    assert dict(zip(found.table["source"], found.table["target"], strict=True)) == {
        "bird": None, "cat": "feline", "dog": "canine",
    }  # fmt: skip
    assert len(found.relations) == 4
    assert found.relations.users == target.users
    near = map_labels(source, target, matching="nearest").table.set_index("source")
    assert near.loc["bird", "target"] == "canine"
    assert near.loc["cat", "likeness"] == pytest.approx(1.0)
    assert near.loc["dog", "likeness"] == pytest.approx(2 / np.sqrt(6))


def test_labels_are_matched_by_the_vectors_of_their_names():
    source = labels(["cat", "dog", "car"])
    wanted = IdMap(["feline", "canine"])
    names = Embeddings(
        IdMap(["cat", "dog", "car", "feline", "canine"]),
        np.array([[1, 0.1, 0], [0.5, 0.6, 0], [0, 0, 1], [1, 0, 0], [0.9, 0.4, 0]], np.float32),
    )
    greedy = map_labels(source, wanted, names=names, matching="nearest", least=0.1)
    assert greedy.table.set_index("source")["target"].to_dict() == {"car": None, "cat": "feline", "dog": "canine"}
    assert greedy.relations.items.take(greedy.relations.item).tolist() == ["i0", "i1"]


def test_one_to_one_takes_no_target_twice_and_the_best_sum():
    names = Embeddings(IdMap(["a", "b", "x", "y"]), np.array([[1, 0], [0.9, 0.1], [1, 0], [0.5, 0.5]], np.float32))
    found = map_labels(labels(["a", "b"]), IdMap(["x", "y"]), names=names)
    assert sorted(found.table["target"]) == ["x", "y"]
    near = map_labels(labels(["a", "b"]), IdMap(["x", "y"]), names=names, matching="nearest")
    assert near.table["target"].tolist() == ["x", "x"]


@pytest.mark.parametrize("last_bits", [1e-8, -1e-8])
def test_names_that_are_alike_by_rounding_alone_are_not_matched(last_bits):
    vectors = np.array([[1, 0, 0], [0, 1, 0], [last_bits, 0, 1], [1, last_bits, 0], [1, 0, 0]], np.float32)
    names = Embeddings(IdMap(["a", "b", "x", "y", "z"]), vectors)
    for matching in ("nearest", "one-to-one"):
        found = map_labels(labels(["a", "b"]), IdMap(["x", "y", "z"]), names=names, matching=matching)
        assert found.table["target"].tolist() == ["y", None], matching


def test_mapping_without_anything_to_compare_is_refused():
    with pytest.raises(InputError, match="give names, or target relations"):
        map_labels(labels(["a", "b"]), IdMap(["x"]))
    with pytest.raises(InputError, match="matching must be"):
        map_labels(labels(["a", "b"]), labels(["a", "b"]), matching="some")


def test_mapped_labels_train_a_model_of_the_target_set():
    ids = IdMap([f"i{n}" for n in range(40)])
    parity = np.arange(40) % 2
    items = Embeddings(ids, (np.eye(2, 4)[parity] + 0.1 * rng().normal(size=(40, 4))).astype(np.float32))
    source = labels(["un" if p else "deux" for p in parity], ids)
    few = labels([("odd" if p else "even") if n < 6 else None for n, p in enumerate(parity)], ids)
    mapped = map_labels(source, few).relations
    found = RidgeProfiles().fit(mapped, items).label(items)
    assert (found.catalogue.take(found.positions[:, 0]) == np.where(parity, "odd", "even")).all()
