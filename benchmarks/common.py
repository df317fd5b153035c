"""The header and the results file of every benchmark: machine, commit, command and a table that can be reproduced."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from recotransfer.experiments.benchmark.processes import environment
from recotransfer.io.artifacts import atomic_file

RESULTS = Path(__file__).parent / "results"


def header() -> dict[str, Any]:
    """Print the machine, commit, command and package versions, and return them for the results file."""
    environ = environment()
    facts = {
        "machine": f"{environ['machine']}, Python {environ['python']}",
        "commit": environ["commit"] or "none",
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "packages": environ["packages"],
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, value in facts.items():
        print(f"{name:9s} {value}")
    return facts


def write_results(name: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write the header and the rows of the table to `results/NAME.json`, and return its path."""
    path = RESULTS / f"{name}.json"
    with atomic_file(path) as file:
        file.write((json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())
    return path
