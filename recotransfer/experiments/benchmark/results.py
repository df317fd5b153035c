"""The figures of a benchmark as plain JSON, and what is read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recotransfer.errors import InputError
from recotransfer.experiments.benchmark.charts import LABEL, shortened

FORMAT = 1
_REQUIRED = ("title", "created", "environment", "protocol", "primary", "reference", "arms", "comparisons", "guard")
_OPTIONAL: Mapping[str, Any] = {
    **dict.fromkeys(
        ("class", "control_of", "guard_of", "weights", "valid", "curve", "users_per_second", "memory_mib", "failed")
    ),
    **{key: {} for key in ("settings", "given", "rankings", "beyond", "seconds")},
    **dict.fromkeys(("trials", "popularity", "ages", "histories"), ()),
    "tuned": False,
}
Arm = Mapping[str, Any]
Results = Mapping[str, Any]


def checked_results(results: Results) -> Results:
    """The results, optional parts of its arms filled in with nothing."""
    if results.get("format") != FORMAT:
        raise InputError(f"results have format {results.get('format')!r}; this version reads format {FORMAT}")
    if missing := [key for key in _REQUIRED if key not in results]:
        raise InputError(f"results hold no {', '.join(missing)}; give what the benchmark wrote, unchanged")
    for arm in results["arms"]:
        if missing := [key for key in ("name", "content") if key not in arm]:
            raise InputError(f"arm {arm.get('name', '?')!r} holds no {', '.join(missing)}; benchmark it again")
        if not arm.get("failed") and results["primary"] not in value_at(arm, "rankings", "all", "metrics"):
            raise InputError(
                f"arm {arm['name']!r} holds no {results['primary']} of the ranking 'all'; benchmark it again, or say "
                "in 'failed' why it has none"
            )
    names = [arm["name"] for arm in results["arms"]]
    if len(set(names)) < len(names):
        raise InputError(f"two arms are called {max(names, key=names.count)!r}; give each arm its own name")
    nothing_ran = all(arm.get("failed") for arm in results["arms"])
    if results["reference"] not in names and not (results["reference"] is None and nothing_ran):
        raise InputError(f"the reference {results['reference']!r} is none of the arms {names}; name one of them")
    arms = [{**_OPTIONAL, **{key: value for key, value in arm.items() if value is not None}} for arm in results["arms"]]
    protocol = dict.fromkeys(("form", "trials", "k", "seed", "encoders", "facts")) | dict(results["protocol"])
    labels = _labels([arm["name"] for arm in arms])
    arms = [{**arm, "label": labels[arm["name"]]} for arm in arms]
    return {"transferability": None, **results, "arms": arms, "protocol": {"split": "not named", **protocol}}


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> label short enough for a plot; names that would look alike show where they begin to differ."""
    out = {name: shortened(name) for name in names}
    for label in set(out.values()):
        alike = [name for name in names if out[name] == label]
        if len(alike) > 1:
            columns = enumerate(zip(*alike, strict=False))
            start = max(next((n for n, letters in columns if len(set(letters)) > 1), 12) - 4, 8)
            out |= {name: f"{name[:7]}…{name[start:]}"[:LABEL] for name in alike}
    return out


def value_at(value: Mapping[str, Any], *keys: str) -> Any:
    """What stands at the path of keys; an empty mapping where the path ends early."""
    for key in keys:
        value = value.get(key) or {}
    return value


def ranked_variants(results: Results) -> list[Arm]:
    """Arms that ran, the best on test first."""
    ran = [arm for arm in results["arms"] if not arm["failed"]]
    return sorted(ran, key=lambda arm: -best_figure(results, arm)["value"])


def failed_variants(results: Results) -> list[Arm]:
    """Arms that did not run to their end."""
    return [arm for arm in results["arms"] if arm["failed"]]


def best_figure(results: Results, arm: Arm) -> Mapping[str, float]:
    """The arm's primary figure, with its interval."""
    found: Mapping[str, float] = arm["rankings"]["all"]["metrics"][results["primary"]]
    return found


def metric_names(results: Results) -> list[str]:
    """Metrics of the ranking "all", the primary one first."""
    found = dict.fromkeys(name for arm in ranked_variants(results) for name in arm["rankings"]["all"]["metrics"])
    return list(dict.fromkeys([results["primary"], *found]))


def difference_between(results: Results, one: str, other: str, ranking: str = "all") -> dict[str, float] | None:
    """`one` minus `other` on the primary metric, as it was tested either way round; None where it was not."""
    for found in results["comparisons"]:
        if found.get("metric") != results["primary"] or found.get("ranking", "all") != ranking:
            continue
        if (found["arm"], found["against"]) == (one, other):
            return {key: found[key] for key in ("value", "low", "high", "p", "p_holm")}
        if (found["arm"], found["against"]) == (other, one):
            turned = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
            return turned | {"p": found["p"], "p_holm": found["p_holm"]}
    return None
