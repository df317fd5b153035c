"""Numbers and conclusions as text for the report."""

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
    models,
    ranked_variants,
    value_at,
)
from recotransfer.numerics.rounding import first_best

FEW = 30  # buckets with fewer pairs are marked as too small
LEVEL = 0.05  # significance level, after Holm's correction


def is_known(value: object) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def four(value: object) -> str:
    """A metric with four decimals; a dash if unknown."""
    if not is_known(value):
        return "–"

    return f"{value:.4f}".replace("-", "−")


def signed(value: Any) -> str:
    """A difference with its sign and four decimals."""
    return ("+" if is_known(value) and value > 0 else "") + four(value)


def count(value: object) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}" if is_known(value) else "–"


def chance(value: Any) -> str:
    """A p value with three decimals."""
    return "–" if not is_known(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: Any) -> str:
    """Seconds with about three significant digits."""
    return "–" if not is_known(value) else f"{value:.2f}" if value < 10 else f"{value:,.{int(value < 100)}f}"


def short_value(value: object) -> str:
    """A setting or fact as short text."""
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
    """The metric in its usual spelling: "NDCG@10" for "ndcg@10"."""
    base, at, k = name.partition("@")
    return _NAMES.get(base, base.replace("_", " ").capitalize()) + at + k


def verdict(results: Results) -> list[str]:
    """Sentences on which variant is best, by how much, whether that is significant, and whether content helped.

    Every figure is from the test, unless its sentence says that it is from validation.
    """
    results = checked_results(results)
    variants = models(results)
    if not variants:
        return ["No variant finished, so there is nothing to compare."]

    best, name = variants[0], metric_name(results["primary"])
    figure = best_figure(results, best)
    users = best["rankings"]["all"].get("users")
    sentences = [
        f"{best['name']} is best on the test: {name} {four(figure['value'])} {interval_words(figure)} "
        f"over {count(users)} users."
    ]
    sentences += [
        f"{each['name']} is the same model: the guard kept {'all' if each['content'] else 'no'} content."
        for each in ranked_variants(results)
        if each["same_as"] == best["name"]
    ]
    if others := [variant for variant in variants if _family(variant) != _family(best)]:
        sentences += _leads(results, best, others)

    sentences += _cold(results, best, variants)
    sentences += _transfers(results, best)
    sentences += _doubts(results, variants)

    return sentences


def _family(variant: Variant) -> str:
    """Name shared by a variant and its guarded form, which are one model with more or less content."""
    return str(variant["guard_of"] or variant["name"])


def _leads(results: Results, best: Variant, others: Sequence[Variant]) -> Iterator[str]:
    """The lead over the runner-up, and over the best variant with content if the best has none, or vice versa."""
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

    lead = f"Its lead over {whom} is {signed(found['value'])} {interval_words(found, signed)}"
    if found["p_holm"] < LEVEL:
        return f"{lead}, significant after Holm's correction ({_p(found['p_holm'])})."

    return f"{lead}, not significant after Holm's correction ({_p(found['p_holm'])}): take the two as tied."


def _p(value: float) -> str:
    return f"p {chance(value)}" if value < 0.001 else f"p = {chance(value)}"


def _cold(results: Results, best: Variant, variants: Sequence[Variant]) -> Iterator[str]:
    """How the variants rank items without training events, if the test has events of such items."""
    name, pairs = metric_name(results["primary"]), {row["bucket"]: row.get("pairs") for row in best["popularity"]}
    if pairs.get("0") and not any(size for bucket, size in pairs.items() if bucket != "0"):
        yield "All held-out items are cold, that is, without training events."
    elif not pairs.get("0") and "cold" not in best["rankings"]:
        return

    for ranking, among in (("cold", "among cold items (without training events)"), ("mixed", "in the whole catalogue")):
        figures = {
            variant["name"]: found
            for variant in variants
            if is_known((found := _figure_in(results, variant, ranking)).get("value"))
        }
        if not figures:
            continue

        first = list(figures)[first_best([float(figure["value"]) for figure in figures.values()])]
        users = next(v for v in variants if v["name"] == first)["rankings"][ranking].get("users")
        few = ", too few for firm conclusions" if is_known(users) and users < FEW else ""
        told = [f"{four(figures[each]['value'])} {interval_words(figures[each])}" for each in (first, best["name"])
                if each in figures]  # fmt: skip
        if first == best["name"]:
            yield f"It is also best {among}: {name} {told[0]} over {count(users)} users{few}."
        else:
            against = f"; {best['name']} has {told[1]}" if len(told) > 1 else ""
            yield f"Best {among} is {first}: {name} {told[0]} over {count(users)} users{few}{against}."


def _figure_in(results: Results, variant: Variant, ranking: str) -> Mapping[str, float]:
    found: Mapping[str, float] = value_at(variant, "rankings", ranking, "metrics", results["primary"])
    return found


def _transfers(results: Results, best: Variant) -> Iterator[str]:
    """What content added on the test, and the guard's first sentence, which is about validation.

    Both for the most important variant; for the others only whether content helped.
    """
    first = (best["name"], best["guard_of"], best["ablation_of"], results["reference"])
    found = sorted(results["guard"], key=lambda each: each["variant"] not in first)

    for n, each in enumerate(found):
        if n == 0:
            words = each["words"].split(". ")[0].rstrip(".")
            if gain := each.get("test"):
                yield (
                    f"On the test, content adds {signed(gain['value'])} {interval_words(gain, signed)} to "
                    f"{each['variant']}, compared with {each['ablation']}."
                )

            yield f"On validation, where the guard decided about {each['variant']}: {words}."
        else:
            effect = {"helps": "helps", "hurts": "hurts"}.get(each["helped"], "makes no difference to")
            gain, part = (each["test"], "test") if each.get("test") else (each["overall"], "validation")
            yield (
                f"By the guard's decision on validation, content {effect} {each['variant']}; on the {part}, all of it "
                f"adds {signed(gain['value'])} {interval_words(gain, signed)}."
            )


def _doubts(results: Results, variants: Sequence[Variant]) -> Iterator[str]:
    """Reservations about the best variant: selection on the test, few users, failed variants."""
    validated = [variant for variant in variants if is_known(variant["valid"])]
    if len(validated) > 1:
        chosen = validated[first_best([float(variant["valid"]) for variant in validated])]
        if chosen is not variants[0]:
            figure = best_figure(results, chosen)
            yield (
                f"Validation alone would have picked {chosen['name']} (on the test {four(figure['value'])} "
                f"{interval_words(figure)}), so being best on the test may in part be the luck of this test set."
            )
        else:
            yield "It is also best on validation, on which a choice would be based."

    users = variants[0]["rankings"]["all"].get("users")
    if is_known(users) and users < FEW:
        yield f"Number of users tested: only {count(users)}, too few for firm conclusions."

    if failed := failed_variants(results):
        names = ", ".join(variant["name"] for variant in failed)
        yield f"{len(failed)} of {len(results['variants'])} variants failed: {names}."
