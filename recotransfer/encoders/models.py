"""Folders and hub names of pretrained models."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import atomic_folder, sha256

_REVISION_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_TUNED = "tuned.json"  # tells a model that was trained here, and belongs to what uses it, from one that was given


def folder_revision(folder: Path) -> str:
    """12 hex digits that change with any weight, tokenizer or configuration file in a model's folder."""
    digest = hashlib.sha256()
    files = {p for pattern in _REVISION_FILES for p in folder.rglob(pattern) if p.is_file()}
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())

    if not files:
        raise InputError(f"{folder} holds no model files; give a folder with config.json and weights")

    return digest.hexdigest()[:12]


def model_folder(model: str | Path) -> Path:
    """The folder of a model: `model` itself if it is one, else the hub's snapshot of that name, over the network."""
    if (folder := Path(model)).is_dir():
        return folder
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise InputError(f"{model} is no folder; give a folder with a saved model, or the model's name on the hub")

    snapshot_download = require("huggingface_hub").snapshot_download

    try:
        return Path(snapshot_download(model, ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot"]))
    except Exception as cause:  # the hub client raises a dozen unrelated types; the cause is kept
        raise InputError(f"model {model!r} is no folder and could not be fetched from the hub: {cause}") from cause


@contextlib.contextmanager
def saved_model(folder: str | Path) -> Iterator[Path]:
    """An empty folder for the files of a trained model, which takes the place of `folder` when all are written.

    Raises:
        InputError: `folder` holds something else than an earlier trained model.
    """
    folder = Path(folder)
    if folder.exists() and not is_tuned(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files, which would be lost; give a new folder")

    with atomic_folder(folder) as new:
        yield new
        (new / _TUNED).write_text('{"format": 1}\n', encoding="utf-8")


def is_tuned(model: Any) -> bool:
    """True for the folder of a model that was trained here."""
    return isinstance(model, (str, os.PathLike)) and (Path(model) / _TUNED).is_file()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and load reports from transformers within; errors still come through."""
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
