"""Image encoder for pictures with a standard view: the mean features of one network layer in each cell of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.image import PretrainedImage, Unreadable, decode
from recotransfer.encoders.models import folder_revision, model_folder, model_label
from recotransfer.errors import InputError, require
from recotransfer.settings import PositiveInt

_BATCH = 8  # pictures per batch; larger ones exceed a CPU's caches


@checked_class
class ImageGrid:
    """Concatenates the mean features of one network layer in each of cells x cells parts of a picture.

    For pictures with a standard view, such as X-rays or scans, in which each part is always in about the same place.
    There the middle layers, which detect textures and edges, are more informative than the top one, which is trained to
    name objects. The whole picture is resized to a square; nothing is cropped.

    Args:
        model: as in `PretrainedImage`: a convolutional network or a vision transformer.
        column: the column with pictures, each as `PretrainedImage` takes it.
        layer: index of the hidden layer; negative ones count from the end.
        cells: number of grid cells along each edge.
        size: edge in pixels to which pictures are resized.
    """

    modality = "image"

    def __init__(
        self,
        *,
        model: str | Path,
        column: str = "image",
        layer: int = -1,
        cells: PositiveInt = 4,
        size: PositiveInt = 112,
    ) -> None:
        self.model = model
        self.column = column
        self.layer = layer
        self.cells = cells
        self.size = size

    @cached_property
    def _reader(self) -> PretrainedImage:
        return PretrainedImage(model=self.model, column=self.column)

    @cached_property
    def name(self) -> str:
        """Model, revision of its files and settings."""
        revision = folder_revision(model_folder(self.model))
        return f"ImageGrid/{model_label(self.model)}@{revision}/{self.layer}/{self.cells}/{self.size}"

    @cached_property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.encode([np.zeros((8, 8, 3), np.uint8)]).shape[1])

    def values(self, items: Items) -> list[Any]:
        """The picture of each item, None where it has none; file names become paths."""
        return self._reader.values(items)

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order; NaN where a picture cannot be read."""
        out: NDArray[np.float32] | None = None
        for first in range(0, len(values), _BATCH):
            pixels = [self._pixels(value) for value in values[first : first + _BATCH]]
            readable = [at for at, picture in enumerate(pixels) if picture is not None]
            if not readable:
                continue

            vectors = self._cells(np.stack([picture for picture in pixels if picture is not None]))
            if out is None:
                out = np.full((len(values), vectors.shape[1]), np.nan, np.float32)

            out[[first + at for at in readable]] = vectors

        return np.full((len(values), self.dim), np.nan, np.float32) if out is None else out

    def _pixels(self, value: object) -> NDArray[np.float32] | None:
        """(3, size, size) network input; None if the picture cannot be read."""
        try:
            image = decode(value)
        except Unreadable:
            return None

        features = self._reader._network.features(image, (self.size, self.size), resample=3)
        return np.asarray(features["pixel_values"], np.float32)

    def _cells(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) vectors of network inputs (n, 3, size, size)."""
        torch = require("torch")

        network = self._reader._network

        with torch.inference_mode():
            tensor = torch.from_numpy(pixels).to(network.device, network.dtype)
            model = getattr(network.model, "vision_model", network.model)
            states = model(pixel_values=tensor, output_hidden_states=True)["hidden_states"]
            if not -len(states) <= self.layer < len(states):
                raise InputError(f"layer is {self.layer}, but the model has {len(states)} hidden layers")

            features = states[self.layer].float()
            if features.ndim == 3:  # a transformer's patches, which follow its class and register tokens
                side = int(features.shape[1] ** 0.5)
                features = features[:, features.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))

            grid = torch.nn.functional.adaptive_avg_pool2d(features, self.cells)
            return np.asarray(grid.permute(0, 2, 3, 1).flatten(1).cpu().numpy(), np.float32)

    def explain_failure(self, value: object) -> str:
        """Why a picture could not be encoded, in a sentence."""
        return self._reader.explain_failure(value)
