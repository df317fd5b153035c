"""Dense image features: vectors for any position in a picture, from a pretrained network and simple filters."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.encoders.image import PretrainedImage, decode
from recotransfer.errors import InputError, require

Float = NDArray[np.float32]
_MULTIPLE = 32  # convolutional networks halve the picture five times, so its edges must be multiples of this


class DenseImage:
    """A vector for any position in a picture: hypercolumns of a frozen network, and responses of simple filters.

    A hypercolumn concatenates the features of several layers at one position (Hariharan et al., "Hypercolumns for
    object segmentation and fine-grained localization", 2015): fine layers localise, coarse ones recognise. For a
    convolutional network these are the last feature maps of each stride, for a transformer the patches of the middle
    and last layers. The filters are those of interactive segmentation (Sommer et al., "ilastik: interactive learning
    and segmentation toolkit", 2011): smoothed colours, gradients, eigenvalues of the Hessian and of the structure
    tensor. Pictures keep their aspect ratio and are processed one at a time.

    Args:
        model: as in `PretrainedImage`; None uses the filters only.
        strides: strides, in pixels of the network's input, of the feature maps to use; None uses all. For convolutional
            networks only.
        scale: factor by which pictures are enlarged for the network; at scale 2, stride 4 is 2 pixels of the picture.
        sigmas: widths of the filters in pixels; empty for no filters.
    """

    def __init__(
        self,
        *,
        model: str | Path | None = None,
        strides: Sequence[int] | None = None,
        scale: float = 1.0,
        sigmas: Sequence[float] = (1.0, 2.0, 4.0),
    ) -> None:
        self.model = model
        self.strides = strides
        self.scale = scale
        self.sigmas = sigmas

    @cached_property
    def _network(self) -> _Layers:
        assert self.model is not None
        return _Layers(PretrainedImage(model=self.model))

    @cached_property
    def name(self) -> str:
        """Model, revision of its files, and settings."""
        model = "none" if self.model is None else PretrainedImage(model=self.model).name.partition("/")[2]
        strides = "all" if self.strides is None else "+".join(map(str, self.strides))
        return f"DenseImage/{model}/{strides}/x{self.scale:g}/{'+'.join(f'{s:g}' for s in self.sigmas) or 'none'}"

    def read(self, picture: object) -> DensePicture:
        """The feature maps of one picture, given as `PretrainedImage` takes it; a damaged one raises `InputError`."""
        if self.model is None and not len(self.sigmas):
            raise InputError("DenseImage has neither a model nor filters; give a model, or sigmas")

        image = decode(picture)
        layers = [] if self.model is None else self._network.layers(image, self.scale, self.strides)
        if len(self.sigmas):
            layers.append(filtered(np.asarray(image, np.float32) / np.float32(255), self.sigmas))

        return DensePicture((image.height, image.width), tuple(layers))


class Layer(NamedTuple):
    """A feature map of a whole picture: `values` (rows * columns, channels), row by row from the top left."""

    values: Float
    rows: int
    columns: int


class DensePicture(NamedTuple):
    """The feature maps of a picture of `shape` (height, width) pixels."""

    shape: tuple[int, int]
    layers: tuple[Layer, ...]

    @property
    def width(self) -> int:
        """Width of a vector."""
        return sum(layer.values.shape[1] for layer in self.layers)

    def at(self, places: NDArray[Any]) -> Float:
        """(n, width) vectors at places (n, 2), in pixels from the top and from the left; a pixel's centre is at 0.5."""
        relative = np.asarray(places, np.float64) / self.shape
        out = [_bilinear(relative, layer) @ layer.values for layer in self.layers]
        return np.asarray(np.hstack(out), np.float32)


def places(shape: tuple[int, int], step: int = 1) -> NDArray[np.float64]:
    """(rows * columns, 2) centres of the cells of a grid of `step` pixels, those inside the picture, in reading order.

    >>> places((4, 6), 2).tolist()
    [[1.0, 1.0], [1.0, 3.0], [1.0, 5.0], [3.0, 1.0], [3.0, 3.0], [3.0, 5.0]]
    """
    y, x = (np.arange(step / 2, edge, step) for edge in shape)
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)


def _bilinear(relative: NDArray[np.float64], layer: Layer) -> sparse.csr_array:
    """(n, cells) bilinear weights of the four cells around each place (n, 2), relative to height and width."""
    neighbours, shares = [], []
    for axis, edge in enumerate((layer.rows, layer.columns)):
        at = np.clip(relative[:, axis] * edge - 0.5, 0, edge - 1)
        low = np.minimum(at.astype(np.int64), max(edge - 2, 0))
        neighbours.append((low, np.minimum(low + 1, edge - 1)))
        shares.append((1 - (at - low), at - low))

    cells = np.stack([y * layer.columns + x for y in neighbours[0] for x in neighbours[1]], axis=1)
    weights = np.stack([y * x for y in shares[0] for x in shares[1]], axis=1).astype(np.float32)
    starts = np.arange(0, cells.size + 1, 4)

    return sparse.csr_array((weights.ravel(), cells.ravel(), starts), shape=(len(relative), layer.rows * layer.columns))


def _layer(channels: NDArray[Any]) -> Layer:
    """A layer from a map (channels, rows, columns)."""
    count, rows, columns = channels.shape
    return Layer(np.ascontiguousarray(channels.reshape(count, -1).T, dtype=np.float32), rows, columns)


def filtered(picture: Float, sigmas: Sequence[float]) -> Layer:
    """The channels of a picture (height, width, channels), and responses of Gaussian filters.

    For each sigma in pixels: the smoothed channels, and of their mean the magnitude of the gradient, both eigenvalues
    of the Hessian and both of the structure tensor.
    """
    from scipy.ndimage import gaussian_filter

    def smooth(image: NDArray[Any], sigma: float, order: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        return np.asarray(gaussian_filter(image, sigma, order) * sigma ** sum(order))

    colours, grey = [*np.moveaxis(picture, 2, 0)], picture.mean(axis=2)
    out = [*colours]
    for sigma in sigmas:
        out += [smooth(colour, sigma) for colour in colours]
        dy, dx = smooth(grey, sigma, (1, 0)), smooth(grey, sigma, (0, 1))
        out.append(np.hypot(dy, dx))
        out += _eigenvalues(smooth(grey, sigma, (2, 0)), smooth(grey, sigma, (1, 1)), smooth(grey, sigma, (0, 2)))
        out += _eigenvalues(smooth(dy * dy, sigma), smooth(dy * dx, sigma), smooth(dx * dx, sigma))

    return _layer(np.stack(out))


def _eigenvalues(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> list[NDArray[Any]]:
    """Larger and smaller eigenvalue of the symmetric matrices [[a, b], [b, c]], elementwise."""
    middle, half = (a + c) / 2, np.hypot((a - c) / 2, b)
    return [middle + half, middle - half]


class _Layers:
    """The feature maps inside a vision model."""

    def __init__(self, encoder: PretrainedImage) -> None:
        self.vision = encoder._network
        self.model = getattr(self.vision.model, "vision_model", self.vision.model)
        self.patch = getattr(self.model.config, "patch_size", None)

        # Transformers that can interpolate their position embeddings take pictures of any size.
        parameters = inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}

    def layers(self, image: object, scale: float, strides: Sequence[int] | None) -> list[Layer]:
        torch = require("torch")

        pixels = self._pixels(image, scale)
        if self.patch is not None:
            with torch.inference_mode():
                return self._patches(pixels)

        with torch.inference_mode():
            maps = self._maps(pixels)

        if lost := set(strides or ()) - set(maps):
            raise InputError(f"the model has no map of stride {min(lost)}; it has {sorted(maps)}")

        chosen = sorted(maps) if strides is None else strides

        return [_layer(maps[stride][0].float().cpu().numpy()) for stride in chosen]

    def _pixels(self, image: Any, scale: float) -> Any:
        """(1, 3, h, w) network input of the whole picture, with edges rounded to multiples that the model requires."""
        torch = require("torch")

        step = self.patch or _MULTIPLE
        width, height = (max(1, round(edge * scale / step)) * step for edge in image.size)
        pixels = np.asarray(self.vision.features(image, (width, height))["pixel_values"], np.float32)

        return torch.from_numpy(pixels[None]).to(self.vision.device, self.vision.dtype)

    def _maps(self, pixels: Any) -> dict[int, Any]:
        """Stride -> the last feature map (1, channels, rows, columns) of that stride."""
        height, width = pixels.shape[2:]
        maps: dict[int, Any] = {}

        def keep(_module: Any, _inputs: Any, out: Any) -> None:
            if getattr(out, "ndim", 0) == 4 and out.shape[2] * out.shape[3] > 1:
                stride = height // out.shape[2]
                if stride > 1 and (stride * out.shape[2], stride * out.shape[3]) == (height, width):
                    maps[stride] = out

        hooks = [module.register_forward_hook(keep) for module in self.model.modules()]
        try:
            self.model(pixel_values=pixels)
        finally:
            for hook in hooks:
                hook.remove()

        if not maps:
            raise InputError(f"{type(self.model).__name__} has no feature maps; use a convolutional network or a ViT")

        return maps

    def _patches(self, pixels: Any) -> list[Layer]:
        """The patches of a transformer's middle and last layers."""
        states = self.model(pixel_values=pixels, output_hidden_states=True, **self.options).hidden_states
        rows, columns = (edge // self.patch for edge in pixels.shape[2:])
        out = []
        for state in (states[len(states) // 2], states[-1]):
            patches = state[0, state.shape[1] - rows * columns :]  # class and register tokens come first
            out.append(Layer(patches.float().cpu().numpy(), rows, columns))

        return out
