"""Vision: image classification as a problem, and heatmaps of what a model has learned to look at.

Masks and boxes are in `segmentation` and `detection`.
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
    """The problem of classifying pictures: pictures are items, and labels are their users.

    Args:
        pictures: a list of pictures, as `PretrainedImage` takes them, or a table that may have further columns, such as
            a title.
        labels: label of each picture; None is unlabelled.
        part: "train", "valid" or "test" for each picture; rows with any other value are ignored.
        encoders: encoders of the columns. A list of pictures becomes the column "image".
        groups: group of each picture, such as who took it: a group must stay in one part, and the bootstrap resamples
            whole groups.
        name: name of the problem.

    Raises:
        InputError: a group has pictures in two parts.
    """
    table = pictures if isinstance(pictures, pd.DataFrame) else experiments.column(pictures, "image")
    items = Items(IdMap(np.arange(len(table))), table.reset_index(drop=True))
    group_numbers = experiments.group_codes(groups, len(items))
    split = experiments.split_items(Interactions.from_labels(labels, items.ids), part, groups=groups)

    return Problem(name, items, split, experiments.LABEL_METRICS, encoders=encoders, groups=group_numbers)


def folder(path: str | Path) -> tuple[list[Path], list[str]]:
    """The pictures in a folder with one subfolder per label, sorted by path, and their labels."""
    pictures = [file for file in sorted(Path(path).glob("*/*")) if file.suffix.lower() in _SUFFIXES]
    if not pictures:
        raise InputError(f"{path} has no subfolders with pictures in them; give each label a folder of its own")

    return pictures, [file.parent.name for file in pictures]


def heatmap(
    task: TransferTask,
    picture: Any,
    label: Any,
    *,
    dense: DenseImage | None = None,
    cells: int = 8,
    column: str = "image",
) -> NDArray[np.float32]:
    """(rows, columns) evidence for a label in each cell of a picture, on the scale of the task's scores.

    By default this is occlusion sensitivity: how far the label's score falls when the cell is covered with the
    picture's mean colour (Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014). With
    `dense` it is a class activation map: the label's score at each cell of the network's feature map (Zhou et al.,
    "Learning deep features for discriminative localization", 2016), for encoders whose vector is the mean of that map.

    Args:
        task: fitted on pictures, with the label among its users.
        picture: the picture to explain.
        label: the label to explain.
        dense: reads the feature map that the task's only encoder averages; None covers cells instead.
        cells: number of rows and of columns; with `dense`, cells along the longer edge, in proportion along the other.
        column: name of the items' column of pictures.

    Raises:
        InputError: `dense` is given and the task has several encoders.
    """
    if dense is not None:
        if len(task.encoders_) != 1:
            raise InputError(
                f"dense needs a task with one encoder, and this has {len(task.encoders_)}; leave dense out"
            )

        features = dense.read(picture)
        rows, columns = (-(-edge * cells // max(features.shape)) for edge in features.shape)
        where = places((rows, columns)) * np.divide(features.shape, (rows, columns))
        blocks = ((task.encoders_[0].modality, features.width),)
        scores = scores_of_places(task, features.at(where), dense.name, users=[label], blocks=blocks)
        return scores.reshape(rows, columns)

    image = np.asarray(decode(picture))
    row_edges, column_edges = (np.linspace(0, edge, cells + 1).round().astype(int) for edge in image.shape[:2])
    mean_colour = image.mean(axis=(0, 1)).astype(np.uint8)
    copies = [image]

    for row in range(cells):
        for cell in range(cells):
            # Cover the neighbouring cells too: the network may not notice a single one.
            top, bottom = row_edges[max(row - 1, 0) : row + 3].take([0, -1])
            left, right = column_edges[max(cell - 1, 0) : cell + 3].take([0, -1])
            covered = image.copy()
            covered[top:bottom, left:right] = mean_colour
            copies.append(covered)

    items = Items(IdMap(np.arange(len(copies))), experiments.column(copies, column))
    scores = task.label(items, users=[label]).scores[:, 0]

    return np.asarray((scores[0] - scores[1:]).reshape(cells, cells))
