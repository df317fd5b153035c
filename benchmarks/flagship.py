"""The flagship and its control arm on real data, run by the command line, scored by an independent referee.

    python benchmarks/flagship.py --data DATA_DIR --referee referee.py amazon_beauty amazon_toys citeulike_a

DATA_DIR holds one folder per set. The referee writes items.csv, train.csv, history.csv and, for itself, truth.csv;
settings are chosen on its validation form (`recotransfer fit --valid`), the test form is scored once. Next-item sets
are run in the strict form: weights are fitted on everything before the validation event, the history of the test holds
it. The control arm is the same model without content, tuned with the same number of trials.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import header, write_results

COLD = {"citeulike_a"}


def run(*words: object) -> str:
    line = [str(w) for w in words]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(line)}\n{done.stdout}")
    return done.stdout


def recotransfer(*words: object) -> tuple[float, float]:
    """Seconds and peak MiB of one call of the command line."""
    script = (
        "import atexit, resource; from recotransfer.cli import main; "
        "atexit.register(lambda: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)); main()"
    )
    start = time.perf_counter()
    out = run(sys.executable, "-c", script, *words)
    seconds = time.perf_counter() - start
    return seconds, int(out.split("peak ")[-1]) / 1024


def one_set(name: str, a: argparse.Namespace, content: bool) -> dict[str, Any]:
    cold, work = name in COLD, a.out / name
    prepare = (sys.executable, a.referee, "prepare", "cold" if cold else "loo", a.data / name)
    choice = ("--part",) if cold else ("--form",)
    run(*prepare, work / "valid", *choice, "valid")
    run(*prepare, work / "test", *choice, "test" if cold else "strict")
    arm = "content" if content else "control"
    model, recs = work / arm, work / f"{arm}-recs-{time.time_ns()}"
    k = 20 if cold else 10
    common = ("--items", work / "test" / "items.csv", "--events", work / "test" / "train.csv", "--out", model)
    common += () if content else ("--no-content",)
    tune = ("--valid", work / "valid" / "truth.csv", "--trials", a.trials, "--k", k, "--cache", a.out / "cache")
    tune += ("--valid-allow", work / "valid" / "candidates.csv") if cold else ()
    tuning, _ = recotransfer("fit", *common, *tune)
    settings = json.loads(run(sys.executable, "-m", "recotransfer", "inspect", model))["settings"]
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    fitting, memory = recotransfer("fit", *common, "--cache", a.out / "cache", *given)
    asked = ("--allow", work / "test" / "candidates.csv") if cold else ("--histories", work / "test" / "history.csv")
    batch, _ = recotransfer("recommend", model, "--out", recs, "--k", k, *asked)
    scores = work / f"{arm}.json"
    run(sys.executable, a.referee, "score", "cold" if cold else "loo", work / "test", recs, "--json", scores)
    figures = json.loads(scores.read_text())
    valid = max(
        float(line.split(",")[-2]) for line in model.with_name(f"{arm}.trials.csv").read_text().splitlines()[1:]
    )
    return {
        "set": name,
        "arm": arm,
        "trials": a.trials,
        "settings": settings,
        f"valid ndcg@{k}": round(valid, 4),
        **{f"test {m}": [round(x, 4) for x in v] for m, v in figures.items() if isinstance(v, list)},
        "users": figures["users"],
        "tune_s": round(tuning, 1),
        "fit_s": round(fitting, 1),
        "fit_peak_mib": round(memory),
        "recommend_s": round(batch, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="folders of DATA_DIR")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--referee", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/flagship"))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--arms", nargs="+", default=["content", "control"], choices=["content", "control"])
    a = parser.parse_args()
    facts = header()
    rows = []
    for name in a.sets:
        for arm in a.arms:
            if name in COLD and arm == "control":
                continue  # behaviour alone cannot rank items without events
            rows.append(one_set(name, a, arm == "content"))
            print("\n" + "\n".join(f"{key:28s} {value}" for key, value in rows[-1].items()), flush=True)
    print(f"written: {write_results('flagship', facts, rows).name}")


if __name__ == "__main__":
    main()
