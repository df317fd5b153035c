"""The examples of docstrings print what they show."""

import doctest
import importlib

import pytest
from conftest import REPO

SOURCES = sorted((REPO / "recotransfer").rglob("*.py"))
SHOWN = [path for path in SOURCES if ">>> " in path.read_text(encoding="utf-8")]


def module_of(path):
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", [module_of(path) for path in SHOWN])
def test_examples_print_what_they_show(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed
