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


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` with the pip line of the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingExtraError(
            f"{module} cannot be imported ({cause}); install it with: pip install 'recotransfer[{extra}]'"
        ) from cause
