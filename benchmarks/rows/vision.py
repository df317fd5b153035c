"""Rows of `adapters.py`: image classification, detection and segmentation."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from recotransfer import Probe, RidgeProfiles, TransferTask, experiments
from recotransfer.adapters import detection, segmentation, vision
from recotransfer.data import Embeddings
from recotransfer.encoders import PretrainedImage, SentenceText
from recotransfer.encoders.image import decode
from recotransfer.encoders.image_map import DenseImage, DensePicture
from recotransfer.transfer import FineTune, ImageNoise

NETWORK = "encoders/mobilenet_v2_imagenet"
NOISE = ImageNoise(turn=0.0, erase=0.0, colour=0.1, light=0.1)
REGS = [{"reg": reg} for reg in (30.0, 100.0, 300.0, 1000.0)]


def pixels(pictures: Sequence[Any], edge: int = 8) -> NDArray[np.float32]:
    """(n, 3 * edge * edge) colours from 0 to 1 of the pictures, resized to `edge` by `edge` pixels."""
    small = [np.asarray(decode(picture).resize((edge, edge), 4), np.float32).ravel() / 255 for picture in pictures]
    return np.stack(small)


def at_size(model: Path, edge: int, folder: Path) -> Path:
    """The folder of a copy of the vision model that reads pictures at `edge` by `edge` pixels."""
    target = folder / f"{model.name}_{edge}px"
    target.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        shutil.copyfile(file, target / file.name)
    settings = json.loads((target / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
    (target / "preprocessor_config.json").write_text(json.dumps(settings))
    return target


def fashion(data: Path, work: Path) -> dict[str, Any]:
    """Article type of product photos: the 20 most common types; a quarter of the photos is the test."""
    from adapters import result_row

    images = pd.read_parquet(data / "fashion_products/images_128px.parquet")
    products = pd.read_csv(data / "fashion_products/products.csv.gz", dtype={"id": str})
    table = images.merge(products, on="id")
    table = table[table["articleType"].isin(table["articleType"].value_counts().index[:20])].reset_index(drop=True)
    lot = np.random.default_rng(0).permutation(len(table)) / len(table)
    part = np.select([lot < 0.25, lot < 0.35], ["test", "valid"], "train")
    frame = pd.DataFrame({"image": table["jpeg"], "title": table["productDisplayName"]})
    network = data / NETWORK
    seen, read = PretrainedImage(model=network), SentenceText(column="title")
    problem = vision.classification(frame, table["articleType"], part, encoders=[seen], name="fashion")
    ids, jpeg = problem.items.ids, frame["image"].tolist()
    shrunk = Embeddings(ids, pixels(jpeg), "8x8 pixels")
    cache = work / "cache"
    frozen = TransferTask(RidgeProfiles(), encoders=[seen], cache=cache).encode(problem.items)[0]
    small = PretrainedImage(model=at_size(network, 128, work))
    tuner = FineTune(
        folder=work / "tuned", epochs=3, learning_rate=5e-4, batch_size=64, trainable_layers=6, augment=NOISE
    )
    ridges = [{"reg": reg, "unobserved": 0.1} for reg in (0.03, 0.1, 0.3, 1.0)]

    def variant(
        name: str, over: experiments.Problem, recommender: Any = None, settings: Any = REGS
    ) -> experiments.Outcome:
        return experiments.run(over, TransferTask(recommender or Probe(), cache=cache), name=name, settings=settings)

    outcomes = [
        variant("8x8 pixels", replace(problem, embeddings=[shrunk])),
        variant("frozen MobileNetV2, ridge", replace(problem, embeddings=[frozen]), RidgeProfiles(), ridges),
        variant("frozen MobileNetV2", replace(problem, embeddings=[frozen])),
        variant("title", replace(problem, encoders=[read])),
        variant("frozen, image and title", replace(problem, encoders=[seen, read])),
    ]
    task = TransferTask(Probe(), tuners={"image": tuner}, cache=cache)
    outcomes.append(
        experiments.run(replace(problem, encoders=[small]), task, name="fine-tuned MobileNetV2", settings=REGS)
    )
    return result_row(
        outcomes,
        problem.metrics,
        "8x8 pixels",
        protocol="20 commonest types, 65% train, 10% valid, 25% test",
        goal="accuracy 0.92 by picture, 0.97 with the title",
        note="titles mostly name the article type, so the title alone almost answers the question",
        reached=outcomes[-1].metrics["accuracy"].value >= 0.92 and outcomes[-2].metrics["accuracy"].value >= 0.97,
    )


def bccd(data: Path, work: Path) -> dict[str, Any]:
    """Detection of blood cells in smear photos: the data set's own test part, its other two parts for training."""
    from adapters import result_row

    images = pd.read_parquet(data / "medical/bccd_images_320x240.parquet")
    boxes = pd.read_csv(data / "medical/bccd_boxes.csv.gz").rename(columns={"image": "picture"})
    pictures = dict(zip(images["image"], images["jpeg"], strict=True))
    part = dict(zip(images["image"], np.where(images["split"] == "test", "test", "train"), strict=True))
    seen = {
        "filters": DenseImage(sigmas=(1.0, 2.0, 4.0, 8.0, 16.0)),
        "frozen MobileNetV2": DenseImage(model=data / NETWORK, strides=(4, 8, 16), scale=2.0, sigmas=()),
    }
    outcomes = []
    for name, dense in seen.items():
        problem = detection.Detection(pictures, boxes, part, dense)
        outcome = experiments.run(problem.problem, TransferTask(Probe(reg=300.0)), name=name, settings=[{}], draws=10)
        outcomes.append(timed(problem.evaluate, outcome))
    return result_row(
        outcomes,
        detection.BOX_METRICS,
        "filters",
        protocol="205 + 87 pictures known, 72 asked",
        note="one ridge, tried on 29 of the 87 before the test was asked; no grid",
        goal="mAP@.5 0.75 on frozen features",
        reached=outcomes[-1].metrics["mAP@.5"].value >= 0.75,
    )


class Remembered(DenseImage):
    """Dense features that are cached, because every fold reads the same pictures."""

    def read(self, picture: Any) -> DensePicture:
        """The features of the picture, computed once."""
        cache = self.__dict__.setdefault("cache", {})
        if picture not in cache:
            cache[picture] = super().read(picture)
        return cache[picture]


def membranes(data: Path, work: Path) -> dict[str, Any]:
    """Segmentation of cell membranes in electron microscopy, by cross-validation over whole slices."""
    from adapters import result_row

    table = pd.read_parquet(data / "medical/em_membrane_256px.parquet")
    pictures = dict(zip(table["id"], table["image_png"], strict=True))
    masks = {
        name: np.where(np.asarray(Image.open(io.BytesIO(mask)).convert("L")) > 127, "cell", "membrane")
        for name, mask in zip(table["id"], table["mask_png"], strict=True)
    }
    order = np.random.default_rng(0).permutation(len(table))
    fold, held = order % 5, order // 5 % 2 == 0
    filters = DenseImage(sigmas=(1.0, 2.0, 4.0))
    network = Remembered(model=data / NETWORK, strides=(2, 4, 8, 16), scale=2.0)
    net = Probe(hidden=64, reg=1.0)
    variants = {
        "filters": (filters, Probe(), False),
        "filters, hidden layer": (filters, net, False),
        "frozen MobileNetV2": (network, net, False),
        "frozen MobileNetV2, in context": (network, net, True),
    }
    outcomes = []
    for name, (seen, recommender, in_context) in variants.items():
        folds = []
        for at in range(5):
            start = time.perf_counter()
            side = np.where(fold == at, "test", np.where((fold == (at + 1) % 5) & held, "valid", "train"))
            part = dict(zip(table["id"], side, strict=True))
            problem = segmentation.Segmentation(pictures, masks, part, seen, samples=1500)
            if in_context:
                problem = problem.in_context(TransferTask(recommender))
            task = TransferTask(recommender)
            outcome = experiments.run(problem.problem, task, name=name, settings=[{}], refit=False, draws=1)
            evaluated = problem.evaluate(outcome, "membrane")  # at the threshold chosen on validation
            folds.append(replace(evaluated, seconds=time.perf_counter() - start))
        outcomes.append(experiments.combine_outcomes(folds, segmentation.MASK_METRICS))
    return result_row(
        outcomes,
        segmentation.MASK_METRICS,
        "filters",
        protocol="5 folds of 30 slices, 1,500 pixels of each known slice; 3 known slices choose where masks are cut",
        goal="Dice 0.80 on frozen features",
        note="strides, hidden width and context were chosen by looking at 6 of the slices, so the folds are not blind",
        reached=outcomes[-1].metrics["Dice"].value >= 0.80,
    )


def timed(
    evaluate: Callable[[experiments.Outcome], experiments.Outcome], outcome: experiments.Outcome
) -> experiments.Outcome:
    """The evaluated outcome, with the time of the evaluation added to its seconds."""
    start = time.perf_counter()
    evaluated = evaluate(outcome)
    return replace(evaluated, seconds=outcome.seconds + time.perf_counter() - start)


ROWS = {
    "fashion": (fashion, ["fashion_products/images_128px.parquet", NETWORK]),
    "em membranes": (membranes, ["medical/em_membrane_256px.parquet", NETWORK]),
    "bccd": (bccd, ["medical/bccd_images_320x240.parquet", NETWORK]),
}
