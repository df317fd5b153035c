"""The figures of a benchmark as plain JSON, and what is read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recotransfer.errors import InputError
from recotransfer.experiments.benchmark.charts import LABEL, shortened

FORMAT = 1
_REQUIRED = ("title", "created", "environment", "protocol", "primary", "reference", "variants", "comparisons", "guard")
_OPTIONAL: Mapping[str, Any] = {
    **dict.fromkeys(
        ("class", "ablation_of", "guard_of", "weights", "valid", "curve", "users_per_second", "memory_mib", "failed")
    ),
    **{key: {} for key in ("settings", "given", "rankings", "beyond", "seconds")},
    **dict.fromkeys(("trials", "popularity", "ages", "histories"), ()),
    "tuned": False,
}
Variant = Mapping[str, Any]
Results = Mapping[str, Any]


def checked_results(results: Results) -> Results:
    """The results, optional parts of its variants filled in with nothing."""
    if results.get("format") != FORMAT:
        raise InputError(f"results have format {results.get('format')!r}; this version reads format {FORMAT}")
    if missing := [key for key in _REQUIRED if key not in results]:
        raise InputError(f"results hold no {', '.join(missing)}; give what the benchmark wrote, unchanged")

    for variant in results["variants"]:
        if missing := [key for key in ("name", "content") if key not in variant]:
            raise InputError(f"variant {variant.get('name', '?')!r} holds no {', '.join(missing)}; benchmark it again")
        if not variant.get("failed") and results["primary"] not in value_at(variant, "rankings", "all", "metrics"):
            raise InputError(
                f"variant {variant['name']!r} holds no {results['primary']} of the ranking 'all'; benchmark it again, "
                "or say in 'failed' why it has none"
            )

    names = [variant["name"] for variant in results["variants"]]
    if len(set(names)) < len(names):
        raise InputError(f"two variants are called {max(names, key=names.count)!r}; give each variant its own name")

    nothing_ran = all(variant.get("failed") for variant in results["variants"])
    if results["reference"] not in names and not (results["reference"] is None and nothing_ran):
        raise InputError(f"the reference {results['reference']!r} is none of the variants {names}; name one of them")

    variants = [
        {**_OPTIONAL, **{key: value for key, value in variant.items() if value is not None}}
        for variant in results["variants"]
    ]
    protocol = dict.fromkeys(("form", "trials", "k", "seed", "encoders", "facts")) | dict(results["protocol"])
    labels = _labels([variant["name"] for variant in variants])
    variants = [{**variant, "label": labels[variant["name"]]} for variant in variants]

    return {"transferability": None, **results, "variants": variants, "protocol": {"split": "not named", **protocol}}


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


def ranked_variants(results: Results) -> list[Variant]:
    """Variants that ran, the best on test first."""
    ran = [variant for variant in results["variants"] if not variant["failed"]]
    return sorted(ran, key=lambda variant: -best_figure(results, variant)["value"])


def failed_variants(results: Results) -> list[Variant]:
    """Variants that did not run to their end."""
    return [variant for variant in results["variants"] if variant["failed"]]


def best_figure(results: Results, variant: Variant) -> Mapping[str, float]:
    """The variant's primary figure, with its interval."""
    found: Mapping[str, float] = variant["rankings"]["all"]["metrics"][results["primary"]]
    return found


def metric_names(results: Results) -> list[str]:
    """Metrics of the ranking "all", the primary one first."""
    found = dict.fromkeys(
        name for variant in ranked_variants(results) for name in variant["rankings"]["all"]["metrics"]
    )
    return list(dict.fromkeys([results["primary"], *found]))


def difference_between(results: Results, one: str, other: str, ranking: str = "all") -> dict[str, float] | None:
    """`one` minus `other` on the primary metric, as it was tested either way round; None where it was not."""
    for found in results["comparisons"]:
        if found.get("metric") != results["primary"] or found.get("ranking", "all") != ranking:
            continue
        if (found["variant"], found["against"]) == (one, other):
            return {key: found[key] for key in ("value", "low", "high", "p", "p_holm")}

        if (found["variant"], found["against"]) == (other, one):
            turned = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
            return turned | {"p": found["p"], "p_holm": found["p_holm"]}

    return None
