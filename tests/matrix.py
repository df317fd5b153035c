"""Runs the suite once under each setting of processor, threads and hashing, and says how each went.

    python tests/matrix.py                                    # all settings, all tests
    python tests/matrix.py --only SSE41 HASHSEED -- tests/encoders -x

What follows `--` goes to pytest. Exit status 1 where a setting fails; the others are run all the same.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[1]
BUSY = "another process on every core"
SETTINGS = [
    "OMP_NUM_THREADS=1",
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "OPENBLAS_CORETYPE=Haswell",
    "OPENBLAS_CORETYPE=SkylakeX",
    "OPENBLAS_CORETYPE=Zen",
    "NUMBA_CPU_NAME=generic",
    "PYTHONHASHSEED=1",
    "PYTHONHASHSEED=4294967295",
    BUSY,
]
TESTS = ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]


def spin():
    """Keep one core at work."""
    while True:
        pass


@contextmanager
def load(wanted):
    """A process at work on every core while the block runs, if wanted."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1) if wanted]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def run(setting, words):
    """Exit status of pytest under the setting, its last line, and the lines that name failures."""
    name, given, value = setting.partition("=")
    environment = {**os.environ, **({name: value} if given else {})}
    with load(setting == BUSY):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    lines = done.stdout.splitlines()
    counts = [re.sub(r"^=+ | =+$", "", line) for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, counts[-1] if counts else "\n".join(lines[-5:]), failures


def main():
    """Run the settings asked for, one line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the settings' names")
    parser.add_argument("tests", nargs="*", default=TESTS, help="words for pytest, after --")
    asked = parser.parse_args()
    chosen = [setting for setting in SETTINGS if any(part in setting for part in asked.only)]
    if not chosen:
        parser.error(f"no setting is named so; they are: {', '.join(SETTINGS)}")
    bad = 0
    for setting in chosen:
        start = time.monotonic()
        status, counts, failures = run(setting, asked.tests)
        bad += status != 0
        word, seconds = "FAILED" if status else "ok", time.monotonic() - start
        print(f"{setting:32} {word:6} {counts} ({seconds:.0f} s)", flush=True)
        for line in failures:
            print(f"    {line}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
