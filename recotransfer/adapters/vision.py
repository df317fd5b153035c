"""Vision: pictures with labels as problems of the core, and what a model has learned as heatmaps.

Pixels and places of pictures are items with vectors of `DenseImage`, classes are users, and learning is the core's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer import experiments
from recotransfer.adapters._places import scores_of_places
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import Encoder
from recotransfer.encoders.image import decode
from recotransfer.encoders.image_map import DenseImage, places
from recotransfer.errors import InputError
from recotransfer.experiments import Problem
from recotransfer.task import TransferTask

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def classification(
    pictures: pd.DataFrame | Sequence[Any],
    labels: Sequence[Any],
    part: ArrayLike,
    *,
    encoders: Sequence[Encoder],
    groups: Sequence[Any] | None = None,
    name: str = "classification",
) -> Problem:
    """Which label each picture bears: pictures are items, labels the users who hold them.

    Args:
        pictures: one each, as `PretrainedImage` takes them, or a table with further columns, such as a title.
        labels: one of each; None is unlabelled.
        part: "train", "valid" or "test" of each; rows of other parts are left out.
        encoders: what reads the columns; a list of pictures is the column "image".
        groups: of each, such as who took it: none may stand in two parts, and intervals draw whole ones.
        name: of the problem.
    """
    table = pictures if isinstance(pictures, pd.DataFrame) else experiments.column(pictures, "image")
    items = Items(IdMap(np.arange(len(table))), table.reset_index(drop=True))
    own = experiments.grouped(groups, len(items))
    split = experiments.split_items(Interactions.from_labels(labels, items.ids), part, groups=groups)

    return Problem(name, items, split, experiments.LABEL_METRICS, encoders=encoders, groups=own)


def folder(path: str | Path) -> tuple[list[Path], list[str]]:
    """The pictures below a folder that has a folder for each label, and their labels, in order of name."""
    found = [p for p in sorted(Path(path).glob("*/*")) if p.suffix.lower() in _SUFFIXES]
    if not found:
        raise InputError(f"{path} has no folders with pictures in them; give each label a folder of its own")

    return found, [p.parent.name for p in found]


def heatmap(
    task: TransferTask,
    picture: Any,
    label: Any,
    *,
    dense: DenseImage | None = None,
    cells: int = 8,
    column: str = "image",
) -> NDArray[np.float32]:
    """(rows, columns) how much each part of a picture speaks for a label, in the scale of the task's scores.

    By default it is how far the label's score falls while a part is covered in the picture's mean colour (Zeiler and
    Fergus, "Visualizing and understanding convolutional networks", 2014). With `dense` it is the score of the label at
    each cell of the network's map alone: class activation maps (Zhou et al., "Learning deep features for discriminative
    localization", 2016), for encoders whose vector is the mean of that map.

    Args:
        task: fitted on pictures, with the label among its users.
        picture: what to look at.
        label: the user.
        dense: reads the map that the task's only encoder takes the mean of; None covers parts.
        cells: rows and columns of parts; with `dense`, along the longer edge, and in proportion along the other.
        column: of the items, which holds the picture.
    """
    if dense is not None:
        if len(task.encoders_) != 1:
            raise InputError(f"dense needs a task of one encoder, and this has {len(task.encoders_)}; leave dense out")

        seen = dense.read(picture)
        rows, columns = (-(-edge * cells // max(seen.shape)) for edge in seen.shape)
        where = places((rows, columns)) * np.divide(seen.shape, (rows, columns))
        block = ((task.encoders_[0].modality, seen.width),)
        return scores_of_places(task, seen.at(where), dense.name, users=[label], blocks=block).reshape(rows, columns)

    image = np.asarray(decode(picture))
    edges = [np.linspace(0, edge, cells + 1).round().astype(int) for edge in image.shape[:2]]
    copies = [image]

    for row in range(cells):
        for at in range(cells):
            # A part and half of its neighbours: covering less, the network may not notice.
            top, bottom = edges[0][max(row - 1, 0) : row + 3].take([0, -1])
            left, right = edges[1][max(at - 1, 0) : at + 3].take([0, -1])
            covered = image.copy()
            covered[top:bottom, left:right] = image.mean(axis=(0, 1)).astype(np.uint8)
            copies.append(covered)

    items = Items(IdMap(np.arange(len(copies))), experiments.column(copies, column))
    found = task.label(items, users=[label]).scores[:, 0]

    return np.asarray((found[0] - found[1:]).reshape(cells, cells))
