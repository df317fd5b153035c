"""Transfer tasks in vision, language, medicine and more: a baseline (the floor), frozen features, and the best method.

    python benchmarks/adapters.py --data DATA_DIR [--only ROW ...]

DATA_DIR holds the public data sets; a row whose files are missing is skipped with a message. A finished row is kept in
OUT/ROW.json and not run again until the code changes; `results/adapters.json` collects all rows, each with its own
commit and command. Every row compares its variants within one run and scores the test once, with 95% intervals of each
variant and of its gain over the floor. Settings are chosen on validation, or by cross-validation outside the test;
variants with "settings": {} had none to choose. "reached" compares the best variant's value, not its interval, with the
goal; it is null if the goal is not a number.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, header, write_results

import recotransfer
from recotransfer.experiments import Metric, Outcome, gain
from recotransfer.io.artifacts import write_json

MODULES = ("vision", "language", "medical", "more")
Row = Callable[[Path, Path], dict[str, Any]]


def result_row(outcomes: Sequence[Outcome], metrics: Mapping[str, Metric], floor: str, **facts: Any) -> dict[str, Any]:
    """A row of results: each variant's metrics with intervals, and its gain over the variant `floor` in the first."""
    lead, metric = next(iter(metrics.items()))
    ablation = next(outcome for outcome in outcomes if outcome.name == floor)
    variants = []
    for outcome in outcomes:
        variant: dict[str, Any] = {"variant": outcome.name}
        variant |= {name: [round(x, 4) for x in estimate] for name, estimate in outcome.metrics.items()}
        if outcome is not ablation:
            variant["gain over floor"] = [round(x, 4) for x in gain(outcome, ablation, metric)]
        settings = {name: _short(value) for name, value in outcome.settings.items()}
        valid = None if np.isnan(outcome.valid) else round(outcome.valid, 4)  # None: nothing was chosen
        variant |= {"valid": valid, "settings": settings, "seconds": round(outcome.seconds, 1)}
        variants.append(variant)
    return {"metric": lead, "floor": floor, "queries": len(ablation.predictions.queries), **facts, "variants": variants}


def _short(value: Any) -> Any:
    if isinstance(value, list):  # one value per fold
        return [_short(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def rows() -> dict[str, tuple[Row, Sequence[str]]]:
    """Row name -> (function of the data folder and a working folder, the files and folders that it needs)."""
    found = {}
    for name in MODULES:
        found |= importlib.import_module(f"rows.{name}").ROWS
    return found


def code_of(row: Row) -> str:
    """A hash of the row's module and of the whole package, by which finished rows are recognised as current."""
    digest = hashlib.sha256(inspect.getsource(inspect.getmodule(row)).encode())
    for file in sorted(Path(recotransfer.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def gathered(facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the results file; commit and command stand in each row, not in the header."""
    write_results("adapters", {name: facts[name] for name in ("machine", "packages", "date")}, rows)


def main() -> None:
    known = rows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/adapters"))
    parser.add_argument("--only", action="append", choices=list(known), help="run these rows only; all by default")
    parser.add_argument("--again", action="store_true", help="run finished rows again")
    a = parser.parse_args()
    facts = header()
    path = RESULTS / "adapters.json"
    kept = {row["row"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for name in a.only or known:
        row, needs = known[name]
        if missing := [file for file in needs if not (a.data / file).exists()]:
            print(f"{name}: skipped, {a.data / missing[0]} does not exist", flush=True)
            continue
        done = a.out / f"{name}.json"
        if done.exists() and not a.again and json.loads(done.read_text())["code"] == code_of(row):
            kept[name] = json.loads(done.read_text())
            continue
        start, cpu = time.perf_counter(), time.process_time()
        result = {"row": name, **row(a.data, a.out / name)}
        if not result["variants"]:
            print(f"{name}: skipped, {result['skipped']}", flush=True)
            continue
        spent = {"minutes": time.perf_counter() - start, "cpu_minutes": time.process_time() - cpu}
        result |= {name: round(seconds / 60, 2) for name, seconds in spent.items()}
        result |= {"commit": facts["commit"], "command": facts["command"], "code": code_of(row)}
        write_json(done, result)
        kept[name] = result
        print(json.dumps(result, indent=1), flush=True)
        gathered(facts, [kept[name] for name in known if name in kept])
    gathered(facts, [kept[name] for name in known if name in kept])
    for name in kept:
        for variant in kept[name]["variants"]:
            print(f"{name:24s} {kept[name]['metric']:18s} {variant['variant']:36s} {variant[kept[name]['metric']]}")


if __name__ == "__main__":
    main()
