"""Find pretrained models in local folders, Python packages or on the Hugging Face hub, and identify their revisions."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from recotransfer.encoders.packaged import packaged_folder
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import MODEL_FILES, atomic_folder, sha256

_REVISION_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_PINNED = re.compile(r"(.+)@([0-9a-f]{12})")  # a model and its required revision
_REVISION = re.compile(r"@([0-9a-f]{12})(?:/|$)")
_FOREIGN = {".bin", ".h5", ".msgpack", ".ot", ".onnx"}  # the same weights for other frameworks, or in an older format
_TUNED = "tuned.json"  # marks a folder that `saved_model` wrote, and may therefore replace


def folder_revision(folder: Path) -> str:
    """12 hex digits that change with any weight, tokenizer or configuration file in a model's folder."""
    files = {p.relative_to(folder) for pattern in _REVISION_FILES for p in folder.rglob(pattern) if p.is_file()}
    if not files:
        raise InputError(f"{folder} holds no model files; give a folder with config.json and weights")

    return revision_of({path.as_posix(): sha256(folder / path) for path in files})


def revision_of(digests: Mapping[str, str]) -> str:
    """The same revision as `folder_revision`, from the SHA-256 of each file by its path in the model's folder."""
    digest = hashlib.sha256()
    for path in sorted(map(PurePosixPath, digests)):
        if any(path.match(pattern) for pattern in _REVISION_FILES):
            digest.update(f"{path}\0{digests[str(path)]}\n".encode())

    return digest.hexdigest()[:12]


def model_folder(model: str | Path) -> Path:
    """The folder of a model: `model` itself if it is a folder, else that of a package, or a snapshot from the hub.

    Args:
        model: a folder, the name of a model that a package carries, or a name on the hub; optionally with a revision,
            as `pinned` returns it.

    Raises:
        InputError: there is no such folder or model, or its files have another revision.
        MissingExtraError: the package that carries the model is not installed.
    """
    if (folder := Path(model)).is_dir():
        return folder

    if found := _PINNED.fullmatch(str(model)):
        return _at_revision(found[1], found[2])

    if (carried := packaged_folder(str(model))) is not None:
        return carried

    if isinstance(model, Path) or model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise InputError(f"{model} is not a folder; give a folder with a saved model, or the model's name on the hub")

    snapshot_download = require("huggingface_hub").snapshot_download

    try:
        return Path(snapshot_download(model, ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot"]))
    except Exception as cause:  # the hub client raises a dozen unrelated types
        raise InputError(
            f"model {model!r} is not a folder and could not be downloaded from the hub ({cause}); check the name"
        ) from cause


def _at_revision(model: str, revision: str) -> Path:
    """The folder of a model, whose files must have the given revision."""
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise InputError(f"{model}, the encoder's folder in the fit, is gone; put the model (revision {revision}) back")

    folder = model_folder(model)
    if (current := folder_revision(folder)) != revision:
        raise InputError(
            f"{model} holds revision {current} of the model, the fit had {revision}; put that one back, or fit again"
        )

    return folder


def unpinned(model: str | Path) -> str:
    """The model's folder or name on the hub without its revision."""
    found = _PINNED.fullmatch(str(model))
    return found[1] if found else str(model)


def model_label(model: str | Path) -> str:
    """The last part of a model's folder or of its name on the hub, without its revision."""
    return Path(unpinned(model)).name


def pinned(model: str | Path, encoder_name: str | None = None) -> str | Path:
    """The model with its revision, and a folder as an absolute path, so that another process uses the same files.

    Args:
        model: a folder or a name on the hub.
        encoder_name: name of the encoder, which contains the revision of a model from the hub; None leaves such a model
            unpinned.
    """
    if (folder := Path(model)).is_dir():
        return f"{folder.absolute()}@{folder_revision(folder)}"
    if _PINNED.fullmatch(str(model)) or encoder_name is None or not (found := _REVISION.search(encoder_name)):
        return model

    return f"{model}@{found[1]}"


def files_to_store(folder: Path) -> list[Path] | None:
    """The files to copy from a model's folder; None if it needs files that are neither text nor safetensors.

    Hidden files are left out, and weights for other frameworks where the same folder has safetensors.
    """
    out = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inner = path.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts) or inner.parts[0] in ("onnx", "openvino"):
            continue

        if path.suffix in MODEL_FILES:
            out.append(path)
        elif path.suffix not in _FOREIGN or not any(path.parent.glob("*.safetensors")):
            return None

    return out if any(path.suffix == ".safetensors" for path in out) else None


@contextlib.contextmanager
def saved_model(folder: str | Path) -> Iterator[Path]:
    """Make a new folder for the files of a trained model, which replaces `folder` once all are written.

    Raises:
        InputError: `folder` holds anything but an earlier trained model, which would be lost.
    """
    folder = Path(folder)
    if folder.exists() and not is_tuned(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files, which would be lost; give a new folder")

    with atomic_folder(folder) as new:
        yield new
        (new / _TUNED).write_text('{"format": 1}\n', encoding="utf-8")


def is_tuned(model: object) -> bool:
    """Whether `model` is a folder that `saved_model` wrote."""
    return isinstance(model, (str, os.PathLike)) and (Path(model) / _TUNED).is_file()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' progress bars and load reports inside the block; errors are still shown."""
    logging = require("transformers.utils.logging")

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
