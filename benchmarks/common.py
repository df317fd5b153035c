"""What every benchmark prints and writes: machine, commit, command, and a table that a later reader can check."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recotransfer.artifacts import atomic_file

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "torch", "faiss-cpu", "implicit", "sentence-transformers")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def header() -> dict[str, Any]:
    """Machine, commit, command and package versions; printed, and returned for the results file."""
    commit = _git("rev-parse", "--short", "HEAD").strip() or "none"
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--untracked-files=no").strip() else ""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    facts = {
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "commit": commit + changed,
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "packages": found,
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


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
