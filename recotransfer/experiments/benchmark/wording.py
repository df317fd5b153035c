"""Figures and verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from recotransfer.experiments.benchmark.results import (
    Results,
    Variant,
    best_figure,
    checked_results,
    difference_between,
    failed_variants,
    ranked_variants,
)
from recotransfer.numerics.rounding import first_best

FEW = 30  # pairs under which a bucket's figures are an anecdote
LEVEL = 0.05  # of significance, after Holm's correction


def is_known(value: Any) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def four(value: Any) -> str:
    """A metric: four decimals."""
    if not is_known(value):
        return "–"

    return f"{value:.4f}".replace("-", "−")


def signed(value: Any) -> str:
    """A difference, its sign always written."""
    return ("+" if is_known(value) and value > 0 else "") + four(value)


def count(value: Any) -> str:
    """A count, thousands apart."""
    return f"{value:,.0f}" if is_known(value) else "–"


def chance(value: Any) -> str:
    """A p value to three decimals."""
    return "–" if not is_known(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: Any) -> str:
    """Seconds to about three digits."""
    return "–" if not is_known(value) else f"{value:.2f}" if value < 10 else f"{value:,.{int(value < 100)}f}"


def short_value(value: Any) -> str:
    """A setting or fact in as few letters as tell it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping) and value:
        return "; ".join(f"{str(key).replace('_', ' ')}: {short_value(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(short_value, value))

    return "none" if value == {} else str(value)


def interval_words(figure: Mapping[str, float], write: Callable[[Any], str] = four) -> str:
    """The interval in brackets."""
    return f"[{write(figure.get('low'))}, {write(figure.get('high'))}]"


_NAMES = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "auc": "AUC", "hit_rate": "Hit rate"}


def metric_name(name: str) -> str:
    """The metric as the field writes it: "ndcg@10" is "NDCG@10"."""
    base, at, k = name.partition("@")
    return _NAMES.get(base, base.replace("_", " ").capitalize()) + at + k


def verdict(results: Results) -> list[str]:
    """Plain sentences: who is best and by how much, whether that is more than chance, whether transfer helped."""
    results = checked_results(results)
    variants = ranked_variants(results)
    if not variants:
        return ["No variant finished, so there is nothing to compare."]

    best, name = variants[0], metric_name(results["primary"])
    figure = best_figure(results, best)
    users = best["rankings"]["all"].get("users")
    said = [
        f"{best['name']} is best: {name} {four(figure['value'])} {interval_words(figure)} "
        f"over {count(users)} test users."
    ]
    if others := [variant for variant in variants if not _alike(best, variant)]:
        said += _leads(results, best, others)

    said += _transfers(results, best)
    said += _doubts(results, variants)

    return said


def _alike(best: Variant, other: Variant) -> bool:
    """True for one model under two names: a variant and its guarded form, or the ablation the guard fell back to."""
    if (best["guard_of"] or best["name"]) == (other["guard_of"] or other["name"]):
        return True

    return any(
        a["guard_of"] and not a["content"] and b["ablation_of"] == a["guard_of"]
        for a, b in ((best, other), (other, best))
    )


def _leads(results: Results, best: Variant, others: Sequence[Variant]) -> Iterator[str]:
    second = others[0]
    across = next((variant for variant in others if variant["content"] != best["content"]), None)
    kind = "without content" if best["content"] else "with content"
    if across is second:
        yield _lead(results, best, second, f"the runner-up {second['name']}, also the best variant {kind},")
        return

    yield _lead(results, best, second, f"the runner-up {second['name']}")
    if across is not None:
        yield _lead(results, best, across, f"the best variant {kind}, {across['name']},")


def _lead(results: Results, best: Variant, other: Variant, whom: str) -> str:
    found = difference_between(results, best["name"], other["name"])
    if found is None:
        ours, theirs = best_figure(results, best), best_figure(results, other)
        apart = "do not overlap" if ours["low"] > theirs["high"] else "overlap"
        gap = signed(ours["value"] - theirs["value"])
        return f"Its lead over {whom} is {gap}; the two were not tested against each other, their intervals {apart}."

    told = f"Its lead over {whom} is {signed(found['value'])} {interval_words(found, signed)}"
    if found["p_holm"] < LEVEL:
        return f"{told}, significant after Holm's correction ({_p(found['p_holm'])})."

    return f"{told}, not significant after Holm's correction ({_p(found['p_holm'])}): take the two as tied."


def _p(value: float) -> str:
    return f"p {chance(value)}" if value < 0.001 else f"p = {chance(value)}"


def _transfers(results: Results, best: Variant) -> Iterator[str]:
    """Whether content helped: the guard's first words on the variant that matters most, in short for the others."""
    first = (best["name"], best["guard_of"], results["reference"])
    found = sorted(results["guard"], key=lambda each: each["variant"] not in first)

    for n, each in enumerate(found):
        if n == 0:
            words = each["words"].split(". ")[0].rstrip(".")
            yield f"{each['variant']} against its ablation, {each['ablation']}: {words}."
        else:
            effect = {"helps": "helps", "hurts": "hurts"}.get(each["helped"], "makes no difference to")
            told = each.get("test") or each["overall"]
            yield f"Content {effect} {each['variant']}: {signed(told['value'])} {interval_words(told, signed)}."


def _doubts(results: Results, variants: Sequence[Variant]) -> Iterator[str]:
    """What a reader should hold against the first sentence."""
    judged = [variant for variant in variants if is_known(variant["valid"])]
    if len(judged) > 1:
        chosen = judged[first_best([float(variant["valid"]) for variant in judged])]
        if chosen is not variants[0]:
            figure = best_figure(results, chosen)
            yield (
                f"Validation alone would have picked {chosen['name']} (test {four(figure['value'])} "
                f"{interval_words(figure)}), so being best here may in part be the luck of this test set."
            )
        else:
            yield "It is also best on validation, which is where a choice would be made."

    users = variants[0]["rankings"]["all"].get("users")
    if is_known(users) and users < FEW:
        yield f"Only {count(users)} users were tested: take none of this as settled."

    if failed := failed_variants(results):
        names = ", ".join(variant["name"] for variant in failed)
        yield f"{len(failed)} of {len(results['variants'])} variants failed: {names}."
