"""Image encoder: any pretrained vision model of transformers; Pillow decodes the pictures, without torchvision."""

from __future__ import annotations

import copy
import io
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import Features, columns_of, encoder_spec, is_missing
from recotransfer.encoders.models import folder_revision, model_folder, model_label, quiet_loading, saved_model
from recotransfer.encoders.precision import Precision, checked_precision
from recotransfer.errors import InputError, require
from recotransfer.settings import PositiveInt, check_settings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_MAX_PIXELS = 64_000_000  # a larger picture is more likely a decompression bomb than a product photo

# Image processors scale the shorter edge to that of the network and crop afterwards: a strip of 6000 x 1 pixels, a file
# of 132 bytes, would become 1,344,000 x 224.
_MAX_RATIO = 100
_RESIZING = ("do_resize", "do_center_crop", "do_pad")  # settings of image processors that change the size
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@checked_class
class PretrainedImage:
    """Encodes pictures with a pretrained vision model: CLIP, SigLIP, DINOv2, ViT, ConvNeXT, ResNet, MobileNetV2, ...

    A picture is a path, the bytes of a file, a uint8 array (height, width[, 1, 3 or 4]), or a PIL image. Damaged or
    missing files are reported and treated as missing content. Transparent pictures are put on white; EXIF orientation
    is applied.

    Args:
        model: a folder, or a name on the hub.
        column: the column with pictures.
        folder: base folder of relative paths. If the items lack `column`, files in it are matched to items by id.
        precision: "auto" and "float32" compute in float32; "bfloat16" suits large models on hardware that supports it.
        batch_size: pictures per batch; None is 64 on a GPU and 4 on a CPU, whose caches larger batches exceed.
        workers: number of threads that decode pictures while the network runs.
    """

    modality = "image"

    def __init__(
        self,
        *,
        model: str | Path,
        column: str = "image",
        folder: str | Path | None = None,
        precision: Precision = "auto",
        batch_size: PositiveInt | None = None,
        workers: PositiveInt = 2,
    ) -> None:
        self.model = model
        self.column = column
        self.folder = folder
        self.precision = precision
        self.batch_size = batch_size
        self.workers = workers

    @cached_property
    def _model_folder(self) -> Path:
        return model_folder(self.model)

    @cached_property
    def name(self) -> str:
        """Model, revision of its files and precision."""
        revision = folder_revision(self._model_folder)
        return f"PretrainedImage/{model_label(self.model)}@{revision}/{self.resolved_precision}"

    @property
    def resolved_precision(self) -> str:
        """The precision in use; "auto" is float32."""
        precision = checked_precision(self.precision)
        return "float32" if precision == "auto" else precision

    @cached_property
    def _network(self) -> _Vision:
        return _Vision(self._model_folder, self.resolved_precision)

    @cached_property
    def dim(self) -> int:
        """Width of a vector."""
        blank = np.full((64, 64, 3), 255, np.uint8)
        return int(self._network.vectors([self._network.features(decode(blank))]).shape[1])

    def values(self, items: Items) -> list[Any]:
        """The picture of each item, None where it has none; file names become paths."""
        root = None if self.folder is None else Path(self.folder)
        if self.column not in items.columns and root is not None:
            by_name = {p.stem: p for p in sorted(root.iterdir()) if p.suffix.lower() in _SUFFIXES}
            return [by_name.get(str(item)) for item in items.ids.ids]

        return [_picture(value, root) for value in columns_of(items, [self.column])[self.column].tolist()]

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order; NaN where a picture cannot be read."""
        check_settings(self)
        size = (64 if self._network.device == "cuda" else 4) if self.batch_size is None else self.batch_size

        out = np.full((len(values), self.dim), np.nan, np.float32)
        start = 0
        for batch in self._decoded(values, size):
            readable = [i for i, features in enumerate(batch) if features is not None]
            if readable:
                out[[start + i for i in readable]] = self._network.vectors([batch[i] for i in readable])

            start += len(batch)

        return out

    def _decoded(self, values: Sequence[Any], size: int) -> Iterator[list[Any]]:
        """Batches of `size` model inputs, None where a picture cannot be read; threads decode two batches ahead."""
        ahead: deque[list[Future[Any]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(values), size):
                ahead.append([pool.submit(self._features, v) for v in values[start : start + size]])
                if len(ahead) > 2:
                    yield [job.result() for job in ahead.popleft()]

            while ahead:
                yield [job.result() for job in ahead.popleft()]

    def _features(self, value: object) -> dict[str, NDArray[Any]] | None:
        """The model's inputs for one picture; None if it cannot be read."""
        try:
            return self._network.features(decode(value, self._network.size))
        except Unreadable:
            return None

    def explain_failure(self, value: object) -> str:
        """Why a picture could not be encoded, in a sentence."""
        try:
            decode(value)
        except Unreadable as reason:
            return str(reason)

        return "the model gave a vector that is not finite"

    def module(self) -> Module:
        """A trainable float32 copy of the model, which maps a batch of `collate` to `Features`.

        `dense` (batch, patches, width) has the patches, or the cells of the last feature map, row by row from the top
        left.
        """
        return _training_form(self._network)

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """The model's inputs for a batch of pictures; raises `Unreadable` if one cannot be decoded."""
        if not len(values):
            raise InputError("no pictures to collate; give at least one")

        torch = require("torch")

        batch = [self._network.features(decode(value, self._network.size)) for value in values]
        return {name: torch.from_numpy(np.stack([one[name] for one in batch])) for name in batch[0]}

    def saved(self, module: Module, folder: str | Path) -> PretrainedImage:
        """The same encoder with the weights of `module`, saved to `folder` atomically."""
        with saved_model(folder) as new, quiet_loading():
            module.network.save_pretrained(new)
            self._network.processor.save_pretrained(new)

        settings = {**encoder_spec(self), "model": str(folder)}
        del settings["class"]
        return PretrainedImage(**settings)


class Unreadable(InputError):
    """A picture that cannot be decoded; the message says why."""


def _picture(value: object, root: Path | None) -> Any:
    """A cell as `decode` takes it, with paths below `root`; None if it is empty."""
    if isinstance(value, Mapping):  # Hugging Face data sets hold {"bytes": ..., "path": ...}
        value = value.get("bytes") or value.get("path")

    if is_missing(value):
        return None
    if isinstance(value, (str, os.PathLike)):
        return Path(value) if root is None else root / value

    return value


def decode(value: object, size: int | None = None) -> Any:
    """Decode a picture to an upright RGB `PIL.Image`.

    Args:
        value: a path, the bytes of a file, an array of uint8 or a PIL image.
        size: shorter edge that is needed, in pixels. A JPEG of more than four times that is decoded at reduced scale,
            which is faster, to at least twice that; None decodes at full scale.

    Raises:
        Unreadable: the picture cannot be decoded, has more than 64 million pixels, or one edge is more than 100 times
            as long as the other; the message says which.
    """
    image_module = require("PIL.Image")
    ops = require("PIL.ImageOps")

    try:
        image = _open(value, image_module)
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise Unreadable(f"the picture has {width} x {height} pixels, more than {_MAX_PIXELS:,}")
        if min(image.size) < 1:
            raise Unreadable("the picture has no pixels")
        if max(image.size) > _MAX_RATIO * min(image.size):
            raise Unreadable(
                f"the picture has {width} x {height} pixels; one edge may be at most {_MAX_RATIO} times as long as the "
                "other"
            )

        if size is not None and image.format == "JPEG" and min(image.size) > 4 * size:
            image.draft(None, (2 * size, 2 * size))

        return _as_rgb(ops.exif_transpose(image), image_module)
    except Unreadable:
        raise
    except Exception as cause:  # Pillow's plugins raise a dozen unrelated types on damaged files
        # Pillow's message names a buffer by its memory address, which would make reports differ from run to run.
        reason = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "bytes", f"{type(cause).__name__}: {cause}")
        raise Unreadable(f"the picture cannot be decoded ({reason})") from cause


def _open(value: Any, image_module: Any) -> Any:
    """The picture as Pillow opens it: large files are not decoded yet."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return image_module.open(io.BytesIO(value))
    if isinstance(value, (str, os.PathLike)):
        return image_module.open(value)

    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim not in (2, 3):
            raise Unreadable(f"the array is {value.dtype} of shape {value.shape}; wanted uint8 (height, width, 3)")

        return image_module.fromarray(value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value)

    if isinstance(value, image_module.Image):
        return value

    raise Unreadable(f"{type(value).__name__} is not a picture; give a path, bytes, an array or a PIL image")


def _as_rgb(image: Any, image_module: Any) -> Any:
    """The picture in RGB: transparency on white, and 16-bit, integer and float grey scaled to 0..255."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        return image_module.alpha_composite(white, image).convert("RGB")

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        depth = np.asarray(image, np.float32)
        top = 65535.0 if image.mode != "F" and depth.max(initial=0) > 255 else max(float(depth.max(initial=0)), 1.0)
        grey = np.clip(depth * (255 / (top if image.mode != "I" or top > 255 else 255.0)), 0, 255)
        image = image_module.fromarray(grey.astype(np.uint8))

    return image.convert("RGB")


class _Vision:
    """A loaded vision model and its image processor."""

    def __init__(self, folder: Path, precision: str) -> None:
        require("PIL.Image")
        torch = require("torch")
        AutoConfig = require("transformers").AutoConfig
        AutoImageProcessor = require("transformers").AutoImageProcessor

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, precision)

        with quiet_loading():
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
            config = AutoConfig.from_pretrained(folder)
            self.model, missing = _load(folder, config)

        if lost := [key for key in missing if "pooler" not in key]:
            raise InputError(f"{folder} lacks weights for {', '.join(lost[:3])}; save the whole model there")

        # Some models are published without their pooler, which transformers then initialises at random.
        self.pooled = not any("pooler" in key for key in missing)
        layout = torch.channels_last if self.device == "cpu" else torch.contiguous_format
        self.model = self.model.eval().to(self.device, self.dtype, memory_format=layout)
        edges = [v for v in dict(self.processor.size).values() if isinstance(v, int)]
        self.size = max(edges) if edges else None

    def features(
        self, image: Any, edges: tuple[int, int] | None = None, *, resample: int = 2
    ) -> dict[str, NDArray[Any]]:
        """The model's inputs for one picture, without the batch axis.

        Args:
            image: as `decode` returns it.
            edges: (width, height) to which the whole picture is resized, for feature maps that keep positions; None
                scales and crops as the model's processor does.
            resample: Pillow's filter for `edges`; 2 is bilinear, 3 bicubic.
        """
        options = {}
        if edges is not None:
            image = image.resize(edges, resample=resample)
            options = {name: False for name in _RESIZING if hasattr(self.processor, name)}

        inputs = self.processor(images=[image], return_tensors="np", **options)
        return {name: np.asarray(array)[0] for name, array in inputs.items()}

    def vectors(self, batch: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """(len(batch), dim) float32; pictures of different shapes are encoded one by one."""
        if len({tuple((name, array.shape) for name, array in one.items()) for one in batch}) > 1:
            return np.concatenate([self.vectors([one]) for one in batch])

        torch = require("torch")

        layout = torch.channels_last if self.device == "cpu" else torch.contiguous_format
        inputs = {}

        for name in batch[0]:
            tensor = torch.from_numpy(np.stack([one[name] for one in batch])).to(self.device)
            if tensor.is_floating_point():
                tensor = tensor.to(self.dtype)

            inputs[name] = tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

        with torch.inference_mode():
            run = getattr(self.model, "get_image_features", self.model)
            found: NDArray[np.float32] = _pool(run(**inputs), self.pooled).float().cpu().numpy()

        return found


def _pool(out: Any, pooled: bool) -> Any:
    """(batch, dim): the model's image embedding, else its pooler's output, else the class token or the map's mean."""
    if not hasattr(out, "keys"):
        return out.flatten(1)
    if out.get("image_embeds") is not None:
        return out["image_embeds"]
    if pooled and out.get("pooler_output") is not None:
        return out["pooler_output"].flatten(1)

    states = out["last_hidden_state"]

    return states[:, 0] if states.ndim == 3 else states.mean(dim=(2, 3))


def _patches(out: Any, pixels: Any, config: Any) -> Any:
    """(batch, patches, width) of the last layer, without class and register tokens; None if it is not an output."""
    states = out.get("last_hidden_state") if hasattr(out, "keys") else None
    if states is None or states.ndim == 4:
        return None if states is None else states.flatten(2).transpose(1, 2)

    size = getattr(getattr(config, "vision_config", config), "patch_size", None)
    if not isinstance(size, int):
        return states

    return states[:, states.shape[1] - (pixels.shape[-2] // size) * (pixels.shape[-1] // size) :]


def _training_form(network: _Vision) -> Module:
    """A copy of a vision model as a module that takes a batch and returns `Features`."""
    base: Any = require("torch").nn.Module
    pooled = network.pooled

    class TrainableImage(base):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network.model).float()

        def forward(self, batch: Mapping[str, Tensor]) -> Features:
            out = getattr(self.network, "get_image_features", self.network)(**batch)
            return Features(_pool(out, pooled), _patches(out, batch["pixel_values"], self.network.config))

    return TrainableImage()


def _load(folder: Path, config: Any) -> tuple[Any, list[str]]:
    """The model in float32, and the names of weights that are missing from the folder."""
    torch = require("torch")
    transformers = require("transformers")

    # AutoModel would drop the projection of a CLIPVisionModelWithProjection.
    kind = (config.architectures or ["AutoModel"])[0]
    loader = getattr(transformers, kind if kind.endswith("VisionModelWithProjection") else "AutoModel")
    model, info = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)

    return model, sorted(info["missing_keys"])
