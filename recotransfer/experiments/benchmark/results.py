"""The results of a benchmark as plain JSON: validation and access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recotransfer.errors import InputError

FORMAT = 1
_REQUIRED = ("title", "created", "environment", "protocol", "primary", "reference", "variants", "comparisons", "guard")
_OPTIONAL: Mapping[str, Any] = {
    **dict.fromkeys(
        (
            "class",
            "ablation_of",
            "guard_of",
            "same_as",
            "weights",
            "valid",
            "curve",
            "users_per_second",
            "memory_mib",
            "failed",
        )
    ),
    **{key: {} for key in ("settings", "given", "rankings", "beyond", "seconds")},
    **dict.fromkeys(("trials", "popularity", "ages", "histories"), ()),
    "tuned": False,
}
Variant = Mapping[str, Any]
Results = Mapping[str, Any]


def checked_results(results: Results) -> Results:
    """The validated results, with defaults for missing optional parts.

    A guarded variant without content is the ablation; `same_as` says so in results of earlier versions too.

    Raises:
        InputError: another format, a missing required part, two variants of one name, or an unknown reference.
    """
    if results.get("format") != FORMAT:
        raise InputError(f"results have format {results.get('format')!r}; this version reads format {FORMAT}")
    if missing := [key for key in _REQUIRED if key not in results]:
        raise InputError(f"results have no {', '.join(missing)}; give the unchanged results of a benchmark")

    for variant in results["variants"]:
        if missing := [key for key in ("name", "content") if key not in variant]:
            raise InputError(f"variant {variant.get('name', '?')!r} has no {', '.join(missing)}; benchmark it again")
        if not variant.get("failed") and results["primary"] not in value_at(variant, "rankings", "all", "metrics"):
            raise InputError(
                f"variant {variant['name']!r} has no {results['primary']} in the ranking 'all'; benchmark it again, "
                "or give the reason under 'failed'"
            )

    names = [variant["name"] for variant in results["variants"]]
    if len(set(names)) < len(names):
        raise InputError(f"two variants are called {max(names, key=names.count)!r}; give each variant its own name")

    nothing_ran = all(variant.get("failed") for variant in results["variants"])
    if results["reference"] not in names and not (results["reference"] is None and nothing_ran):
        raise InputError(f"the reference {results['reference']!r} is not a variant; choose one of {names}")

    variants = [
        {**_OPTIONAL, **{key: value for key, value in variant.items() if value is not None}}
        for variant in results["variants"]
    ]
    protocol = dict.fromkeys(("form", "trials", "k", "seed", "encoders", "facts")) | dict(results["protocol"])
    variants = [{**variant, **_as_original(variant, variants)} for variant in variants]

    return {"transferability": None, **results, "variants": variants, "protocol": {"split": "not named", **protocol}}


def value_at(value: Mapping[str, Any], *keys: str) -> Any:
    """The value at a path of keys; an empty mapping if a key is missing."""
    for key in keys:
        value = value.get(key) or {}

    return value


def _as_original(variant: Variant, variants: Sequence[Variant]) -> dict[str, Any]:
    """`same_as`, and the cost of that variant: earlier versions measured it for each, and one model has one."""
    name = _original(variant, variants)
    costs = ("seconds", "users_per_second", "memory_mib")
    found = next(({cost: each[cost] for cost in costs} for each in variants if each["name"] == name), {})

    return {"same_as": name, **found}


def _original(variant: Variant, variants: Sequence[Variant]) -> str | None:
    """Name of the variant, among those that finished, whose model this guarded variant is; None if it is its own."""
    finished = {each["name"]: each for each in variants if not each["failed"]}
    if variant["same_as"] in finished:
        return str(variant["same_as"])
    if variant["guard_of"] is None or variant["content"]:
        return None

    return next((name for name, each in finished.items() if each["ablation_of"] == variant["guard_of"]), None)


def ranked_variants(results: Results) -> list[Variant]:
    """Variants that finished, the best on the test first; a variant before those that are the same model."""
    ran = [variant for variant in results["variants"] if not variant["failed"]]
    return sorted(ran, key=lambda variant: (-best_figure(results, variant)["value"], variant["same_as"] is not None))


def models(results: Results) -> list[Variant]:
    """Variants that finished, the best on the test first, each model once."""
    return [variant for variant in ranked_variants(results) if variant["same_as"] is None]


def failed_variants(results: Results) -> list[Variant]:
    """Variants that did not finish."""
    return [variant for variant in results["variants"] if variant["failed"]]


def best_figure(results: Results, variant: Variant) -> Mapping[str, float]:
    """The variant's primary metric with its interval."""
    found: Mapping[str, float] = variant["rankings"]["all"]["metrics"][results["primary"]]
    return found


def metric_names(results: Results) -> list[str]:
    """Metrics of the ranking "all", the primary one first."""
    found = dict.fromkeys(
        name for variant in ranked_variants(results) for name in variant["rankings"]["all"]["metrics"]
    )
    return list(dict.fromkeys([results["primary"], *found]))


def difference_between(results: Results, one: str, other: str, ranking: str = "all") -> dict[str, float] | None:
    """`one` minus `other` on the primary metric, tested in either direction; None if the two were not compared."""
    same = {variant["name"]: variant["same_as"] or variant["name"] for variant in results["variants"]}
    one, other = same.get(one, one), same.get(other, other)
    for found in results["comparisons"]:
        if found.get("metric") != results["primary"] or found.get("ranking", "all") != ranking:
            continue
        if (found["variant"], found["against"]) == (one, other):
            return {key: found[key] for key in ("value", "low", "high", "p", "p_holm")}

        if (found["variant"], found["against"]) == (other, one):
            negated = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
            return negated | {"p": found["p"], "p_holm": found["p_holm"]}

    return None
