"""What every benchmark prints and writes: machine, commit, command, and a table that a later reader can check."""

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
    """Machine, commit, command and package versions; printed, and returned for the results file."""
    found = environment()
    facts = {
        "machine": f"{found['machine']}, Python {found['python']}",
        "commit": found["commit"] or "none",
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "packages": found["packages"],
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, value in facts.items():
        print(f"{name:9s} {value}")
    return facts


def write_results(name: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write `results/NAME.json` with the header and the rows of the table; returns its path."""
    path = RESULTS / f"{name}.json"
    with atomic_file(path) as file:
        file.write((json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())
    return path
