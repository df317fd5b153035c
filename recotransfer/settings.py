"""Settings: the keyword arguments of a constructor, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

_FORMER_NAMES = {"rng": "seed"}  # as saved folders of format 1 may call them


def saved_settings(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a file under the names that the constructor of `kind` takes now, its lists as tuples."""
    known = inspect.signature(kind).parameters
    out = {}

    for name, value in values.items():
        present = _FORMER_NAMES.get(name, name)
        if name in known or present not in known:
            present = name

        out[present] = tuple(value) if isinstance(value, list) else value

    return out
