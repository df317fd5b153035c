"""Dense features, and pictures with labels, masks and boxes as cases."""

import numpy as np
import pandas as pd
import pytest

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import detection, segmentation, vision
from recotransfer.data import Embeddings
from recotransfer.encoders import PretrainedImage
from recotransfer.encoders.image_map import DenseImage, DensePicture, Layer, places
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import EDGES, box_matches, box_precision, dice, intersection_over_union


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny vision models with random weights: two of maps, one of patches."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2Model, ResNetConfig, ResNetModel, ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made = {
        "maps": MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, image_size=32)),
        "shallow": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        "patches": ViTModel(ViTConfig(**small, image_size=32, patch_size=8)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(root / name)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / name)
    return root


def noise(shape=(40, 60), seed=0):
    return np.random.default_rng(seed).integers(90, 160, (*shape, 3), dtype=np.uint8)


# -- dense features ----------------------------------------------------------------------------------------------------


def test_a_vector_at_a_place_lies_between_those_of_the_cells_around_it():
    rows, columns, stride = 5, 8, 4
    middles = places((rows * stride, columns * stride), stride)
    picture = DensePicture((rows * stride, columns * stride), (Layer(middles.astype(np.float32), rows, columns),))
    asked = np.array([[2.0, 2.0], [3.5, 9.25], [10.0, 30.0], [17.9, 14.0]])
    np.testing.assert_allclose(picture.at(asked), asked, atol=1e-5)
    np.testing.assert_allclose(picture.at(np.array([[0.0, 0.0], [20.0, 32.0]])), [[2, 2], [18, 30]])
    np.testing.assert_allclose(picture.at(middles), middles, atol=1e-5)


def test_filters_see_colour_and_where_an_edge_is():
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, 20:] = (255, 128, 0)
    seen = DenseImage(sigmas=(1.0, 2.0)).read(image)
    assert seen.width == 3 + 8 * 2
    vectors = seen.at(places(seen.shape)).reshape(30, 40, -1)
    np.testing.assert_allclose(vectors[:, 30, :3], np.tile([1, 128 / 255, 0], (30, 1)), atol=1e-6)
    assert set(vectors[15, :, 6].argsort()[-2:]) == {19, 20}
    assert abs(vectors[15, 5, 6]) < 1e-6


def test_maps_of_several_strides_meet_at_one_place(models):
    dense = DenseImage(model=models / "maps", sigmas=())
    seen = dense.read(noise((64, 96)))
    assert [(layer.rows, layer.columns) for layer in seen.layers] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    some = DenseImage(model=models / "maps", strides=(4, 16), sigmas=()).read(noise((64, 96)))
    at = places((64, 96), 16)
    widths = np.cumsum([layer.values.shape[1] for layer in seen.layers])
    whole = seen.at(at)
    np.testing.assert_array_equal(
        some.at(at), np.hstack([whole[:, widths[0] : widths[1]], whole[:, widths[2] : widths[3]]])
    )
    finer = DenseImage(model=models / "maps", strides=(4,), scale=2.0, sigmas=()).read(noise((64, 96)))
    assert finer.layers[0].rows == 32
    with pytest.raises(InputError, match="no map of stride 3"):
        DenseImage(model=models / "maps", strides=(3,)).read(noise())


def test_patches_of_a_transformer_keep_to_the_pictures_own_shape(models):
    seen = DenseImage(model=models / "patches", sigmas=()).read(noise((40, 64)))
    assert [(layer.rows, layer.columns, layer.values.shape) for layer in seen.layers] == [(5, 8, (40, 16))] * 2


def test_nothing_to_see_with_is_refused():
    with pytest.raises(InputError, match="neither a model nor filters"):
        DenseImage(sigmas=()).read(noise())
    with pytest.raises(InputError, match="cannot be decoded"):
        DenseImage().read(b"no picture")


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_overlap_of_masks():
    truth, found = np.zeros((2, 4, 4), bool)
    assert np.isnan(dice(truth, found))
    truth[:2], found[1:3] = True, True
    assert dice(truth, found) == 0.5
    assert intersection_over_union(truth, found) == pytest.approx(1 / 3)


def boxes(count, seed, pictures="abc", labels=("x", "y")):
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 60, (count, 2)).round()
    table = pd.DataFrame(np.hstack([corner, corner + draw.uniform(10, 30, (count, 2)).round()]), columns=EDGES)
    return table.assign(picture=draw.choice(list(pictures), count), label=draw.choice(labels, count))


@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_is_that_of_pycocotools(seed):
    import contextlib
    import io

    from pycocotools.cocoeval import COCOeval

    from recotransfer.evaluation.metrics.detection import _coco

    truth, draw = boxes(40, seed), np.random.default_rng(seed)
    found = pd.concat([truth.iloc[:30], boxes(40, seed + 50)], ignore_index=True)
    found[EDGES] += draw.normal(0, 3, (len(found), 4))
    found["score"] = draw.permutation(len(found)) / 100
    table = box_matches(found, truth, list("abc"), list("xy"))
    mine = []
    for column in zip(*table, strict=True):
        scores, hit = (np.concatenate([getattr(m, name) for m in column]) for name in ("scores", "hit"))
        mine.append(box_precision(scores, hit, sum(m.truths for m in column)))
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(_coco(truth, "abc", "xy"), _coco(found, "abc", "xy"), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert np.mean(mine) == pytest.approx(judge.stats[1], abs=1e-9)
    assert 0.2 < np.mean(mine) < 0.95


def test_a_true_box_is_hit_once():
    truth = boxes(1, 0, "a", ["x"])
    found = pd.concat([truth, truth]).assign(score=[0.9, 0.8])
    ((match,),) = box_matches(found, truth, ["a"], ["x"])
    assert match.hit.tolist() == [True, False]
    assert box_precision(match.scores, match.hit, match.truths) == 1.0
    assert np.isnan(box_precision([], [], 0))
    with pytest.raises(InputError, match="no column 'xmin'"):
        box_matches(found.drop(columns="xmin"), truth, ["a"], ["x"])


# -- pictures with labels ----------------------------------------------------------------------------------------------

HUES = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def coloured(label, seed, shape=(32, 32)):
    return np.clip(noise(shape, seed).astype(int) - 120 + np.array(HUES[label]), 0, 255).astype(np.uint8)


class MeanColour:
    """A picture's mean colour, for tests."""

    name, column, dim, modality = "MeanColour", "image", 3, "image"

    def values(self, items):
        return items.columns["image"].tolist()

    def encode(self, values):
        return np.stack([v.mean(axis=(0, 1)) for v in values]).astype(np.float32)

    def explain_failure(self, value):
        return "cannot be"

    def spec(self):
        return {}


def dealt(n):
    return np.resize(["train", "train", "val", "test"], n)


def test_pictures_with_labels_are_a_problem(models):
    labels = np.resize(list(HUES), 48)
    pictures = [coloured(label, rng) for rng, label in enumerate(labels)]
    encoder = PretrainedImage(model=models / "shallow")
    problem = vision.classification(pictures, labels, dealt(48), encoders=[encoder])
    done = experiments.run(problem, TransferTask(Probe(), progress=False), settings=[{"reg": 1.0}], draws=50)
    assert done.metrics["accuracy"].value > 0.9
    assert len(done.predictions.queries) == 12


def test_intervals_draw_whole_groups_and_none_stands_in_two_parts():
    labels = np.resize(list(HUES), 48)
    pictures = [coloured(label, rng) for rng, label in enumerate(labels)]
    takers = np.array([f"camera {at // 4}" for at in range(48)], dtype=object)
    part = np.resize(np.repeat(["train", "train", "valid", "test"], 4), 48)
    problem = vision.classification(pictures, labels, part, encoders=[MeanColour()], groups=takers)
    done = experiments.run(problem, TransferTask(Probe(), progress=False), settings=[{}], draws=10)
    assert [takers[unit] for unit in done.predictions.queries] == [
        f"camera {at}" for at in (3, 7, 11) for _ in range(4)
    ]
    assert np.bincount(done.predictions.groups).tolist() == [0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4]
    with pytest.raises(InputError, match="'camera 0' has items in two parts"):
        vision.classification(pictures, labels, dealt(48), encoders=[MeanColour()], groups=takers)
    with pytest.raises(InputError, match="47 groups for 48 records"):
        vision.classification(pictures, labels, part, encoders=[MeanColour()], groups=takers[1:])


def test_a_folder_of_folders_names_the_labels(tmp_path):
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for at in range(2):
            Image.fromarray(noise(seed=at)).save(tmp_path / label / f"{at}.png")
    (tmp_path / "dog" / "notes.txt").write_text("x")
    pictures, labels = vision.folder(tmp_path)
    assert labels == ["cat", "cat", "dog", "dog"]
    assert pictures[2] == tmp_path / "dog" / "0.png"
    with pytest.raises(InputError, match="folder of its own"):
        vision.folder(tmp_path / "cat")


def test_covering_what_makes_the_label_lowers_its_score():
    labels = np.resize(list(HUES), 48)
    pictures = [coloured(label, rng) for rng, label in enumerate(labels)]
    problem = vision.classification(pictures, labels, dealt(48), encoders=[MeanColour()])
    task = experiments.run(problem, TransferTask(Probe(), progress=False), settings=[{}], draws=10).task
    picture = coloured("blue", 0, (40, 60))
    picture[20:30, 40:50] = HUES["red"]
    heat = vision.heatmap(task, picture, "red", cells=6)
    assert heat.shape == (6, 6)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 2 <= row <= 5
    assert 3 <= column <= 5
    assert heat[0, 0] < 0.2 * heat.max()


def test_an_activation_map_asks_each_cell_for_the_label(models):
    labels = np.resize(list(HUES), 24)
    encoder = PretrainedImage(model=models / "shallow")
    pictures = [coloured(label, rng) for rng, label in enumerate(labels)]
    problem = vision.classification(pictures, labels, dealt(24), encoders=[encoder])
    task = experiments.run(problem, TransferTask(Probe(), progress=False), settings=[{"reg": 1.0}], draws=10).task
    picture = np.hstack([coloured("red", 0, (96, 96)), coloured("green", 0, (96, 96))])
    dense = DenseImage(model=models / "shallow", strides=(8,), sigmas=())
    heat = vision.heatmap(task, picture, "red", dense=dense, cells=6)
    assert heat.shape == (3, 6)
    assert heat[:, :3].min() > heat[:, 3:].max()
    twice = TransferTask(Probe(), encoders=[MeanColour(), encoder], progress=False).fit(
        problem.items, problem.split.train
    )
    with pytest.raises(InputError, match="one encoder, and this has 2"):
        vision.heatmap(twice, picture, "red", dense=dense)


@pytest.mark.parametrize(
    ("shape", "cells", "wanted"),
    [((33, 64), 8, (5, 8)), ((65, 31), 4, (4, 2)), ((97, 97), 6, (6, 6)), ((2, 9), 6, (2, 6))],
)
def test_an_activation_map_covers_pictures_of_any_size(shape, cells, wanted):
    class Colours:
        """The colour of each pixel, of which `MeanColour` is the mean."""

        name = "Colours"

        def read(self, picture):
            return DensePicture(shape, (Layer(picture.reshape(-1, 3).astype(np.float32), *shape),))

    labels = np.resize(list(HUES), 24)
    pictures = [coloured(label, rng) for rng, label in enumerate(labels)]
    problem = vision.classification(pictures, labels, dealt(24), encoders=[MeanColour()])
    task = experiments.run(problem, TransferTask(Probe(), progress=False), settings=[{"reg": 1.0}], draws=10).task
    picture = np.full((*shape, 3), HUES["blue"], np.uint8)
    picture[:, : shape[1] // 2] = HUES["red"]
    heat = vision.heatmap(task, picture, "red", dense=Colours(), cells=cells)
    assert heat.shape == wanted
    assert (heat[:, : wanted[1] // 2] > heat[:, -(wanted[1] // 2) :]).all()


# -- masks and boxes ---------------------------------------------------------------------------------------------------


def discs(count=12, shape=(48, 64)):
    draw, pictures, masks = np.random.default_rng(0), {}, {}
    y, x = np.indices(shape)
    for at in range(count):
        picture, mask = noise(shape, at), np.zeros(shape, bool)
        for _ in range(3):
            mask |= np.hypot(y - draw.uniform(8, 40), x - draw.uniform(8, 56)) < draw.uniform(5, 9)
        picture[mask] += 40
        pictures[f"p{at}"], masks[f"p{at}"] = picture, np.where(mask, "disc", "rest")
    return pictures, masks


def test_masks_are_learned_from_some_pixels_and_judged_whole():
    pictures, masks = discs()
    part = dict(zip(pictures, dealt(12), strict=True))
    done = []
    for name, sigmas in {"colours": (0.3,), "smooth": (1.0, 2.0, 4.0)}.items():
        problem = segmentation.Segmentation(pictures, masks, part, DenseImage(sigmas=sigmas), samples=300)
        outcome = experiments.run(problem.problem, TransferTask(Probe()), name=name, settings=[{"reg": 1.0}], draws=50)
        done.append(problem.evaluate(outcome, "disc"))
    rough, smooth = done
    assert smooth.metrics["Dice"].value > 0.9
    assert smooth.metrics["IoU"].value < smooth.metrics["Dice"].value
    assert smooth.predictions.queries.tolist() == ["p3", "p7", "p11"]
    assert 0.2 <= smooth.settings["cut"] <= 0.6
    assert experiments.gain(smooth, rough, segmentation.dice_of_masks).low > 0
    shares = problem.shares(smooth.task, pictures["p3"])
    assert shares.shape == (2, 48, 64)
    np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-4)


def test_answers_around_a_pixel_are_context():
    pictures, masks = discs()
    part = dict(zip(pictures, dealt(12), strict=True))
    task = TransferTask(Probe(reg=1.0))
    alone = segmentation.Segmentation(pictures, masks, part, DenseImage(sigmas=(1.0,)), samples=300)
    around = alone.in_context(task)
    assert [known for _, known in around.before] == [{"p0", "p4", "p8"}, {"p1", "p5", "p9"}]
    assert around.problem.embeddings[0].dim == alone.problem.embeddings[0].dim + 1 + 6 * 4
    first, second = (
        p.evaluate(experiments.run(p.problem, task, settings=[{}], draws=10), "disc") for p in (alone, around)
    )
    assert experiments.gain(second, first, segmentation.dice_of_masks).low > 0


def test_a_mask_of_another_size_is_refused():
    pictures, masks = discs(2)
    masks["p1"] = masks["p1"][:-1]
    with pytest.raises(InputError, match="must agree"):
        _ = segmentation.Segmentation(pictures, masks, {"p0": "train", "p1": "test"}, DenseImage()).problem


def test_a_picture_or_a_column_that_is_not_there_is_named():
    pictures, masks = discs(3)
    part = {"p0": "train", "p1": "test", "p2": "spare", "p9": "spare"}
    few = {name: masks[name] for name in ("p0", "p2")}
    assert len(segmentation.Segmentation(pictures, masks, part, DenseImage(), samples=10).problem.items) == 20
    with pytest.raises(InputError, match="picture 'p1' has a part but is not in masks"):
        segmentation.Segmentation(pictures, few, part, DenseImage())
    with pytest.raises(InputError, match="picture 'p1' has a part but is not in pictures"):
        segmentation.Segmentation(few, masks, part, DenseImage())
    pictures, truth = squares(3)
    with pytest.raises(InputError, match="picture 7 has a part but is not in pictures"):
        detection.Detection(pictures, truth, {0: "train", 7: "test"}, DenseImage())
    with pytest.raises(InputError, match="the boxes have no column 'ymax'; they have"):
        detection.Detection(pictures, truth.drop(columns="ymax"), {0: "train", 1: "test"}, DenseImage())


def squares(count=24, shape=(64, 96)):
    draw, pictures, rows = np.random.default_rng(0), {}, []
    for at in range(count):
        picture = noise(shape, at)
        for cell in draw.choice(6, 3, replace=False):
            label = ("red", "blue")[draw.integers(2)]
            height, width = (12, 12) if label == "red" else (14, 24)
            top, left = 32 * (cell // 3) + draw.integers(32 - height), 32 * (cell % 3) + draw.integers(32 - width)
            picture[top : top + height, left : left + width] = HUES[label]
            rows.append((at, label, left, top, left + width, top + height))
        pictures[at] = picture
    return pictures, pd.DataFrame(rows, columns=["picture", "label", *EDGES])


def test_boxes_are_found_where_they_were_planted():
    pictures, truth = squares()
    part = dict(zip(pictures, np.resize(["train", "train", "train", "test"], 24), strict=True))
    problem = detection.Detection(pictures, truth, part, DenseImage(sigmas=(1.0, 3.0, 6.0)), step=2, shapes=(1, 1))
    outcome = experiments.run(problem.problem, TransferTask(Probe(hidden=32, reg=0.01)), settings=[{}], draws=50)
    told = problem.evaluate(outcome)
    assert told.metrics["mAP@.5"].value > 0.8
    assert len(told.predictions.queries) == 6
    found = problem.found(outcome.task, pictures[3])
    assert (found["score"].diff().dropna() <= 0).all()
    assert found[EDGES].to_numpy().min() >= 0
    best = found.iloc[0]
    mine = truth[(truth["picture"] == 3) & (truth["label"] == best["label"])]
    assert np.abs(mine[EDGES] - best[EDGES].to_numpy(float)).max(axis=1).min() < 5


def test_a_box_that_no_found_one_hits_counts_against_the_outcome():
    pictures, truth = squares(8)
    part = dict(zip(pictures, dealt(8), strict=True))
    problem = detection.Detection(
        pictures, truth, part, DenseImage(), shapes=(1, 1), least=1.1
    )  # nothing is worth telling
    outcome = experiments.run(problem.problem, TransferTask(Probe()), settings=[{}], draws=10)
    told = problem.evaluate(outcome)
    assert told.metrics["mAP@.5"].value == 0
    assert told.predictions.truth.sum() == truth["picture"].isin([3, 7]).sum()


def test_shapes_are_bins_of_the_training_boxes():
    pictures, truth = squares(8)
    rest = truth.assign(xmax=truth["xmax"] + np.arange(len(truth)) % 7)
    problem = detection.Detection(pictures, rest, dict.fromkeys(pictures, "train"), DenseImage(), shapes=(2, 2))
    _, means = problem._boxes_and_sizes
    assert len(means) == 8
    assert means.loc["blue"]["width"].min() > means.loc["red"]["width"].min()
    strange = pd.concat([truth, truth.iloc[:1].assign(picture=7, label="green")])
    part = {at: "test" if at == 7 else "train" for at in pictures}
    with pytest.raises(InputError, match="'green' has no box in training"):
        _ = detection.Detection(pictures, strange, part, DenseImage()).problem


def test_vectors_of_places_are_parts_of_the_problem():
    pictures, masks = discs(4)
    problem = segmentation.Segmentation(
        pictures, masks, dict(zip(pictures, dealt(4), strict=True)), DenseImage(), samples=50
    )
    (part,) = problem.problem.embeddings
    assert isinstance(part, Embeddings)
    assert part.source == problem.features.name
    picture, y, x = part.ids.ids[60]
    np.testing.assert_array_equal(part.vectors[60], DenseImage().read(pictures[picture]).at(np.array([[y, x]]))[0])
    assert len(set(problem.problem.groups)) == 4
