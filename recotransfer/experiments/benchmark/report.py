"""A benchmark's results as a self-contained HTML page and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recotransfer.arguments import checked
from recotransfer.errors import require
from recotransfer.evaluation.metrics import POPULARITY_BUCKET_NAMES
from recotransfer.experiments.benchmark.charts import Line, Panel, Point, Row, forest, scatter, small_lines
from recotransfer.experiments.benchmark.results import (
    Results,
    Variant,
    best_figure,
    checked_results,
    difference_between,
    failed_variants,
    metric_names,
    ranked_variants,
    value_at,
)
from recotransfer.experiments.benchmark.wording import (
    FEW,
    LEVEL,
    chance,
    count,
    four,
    interval_words,
    is_known,
    metric_name,
    seconds,
    short_value,
    signed,
    verdict,
)
from recotransfer.io.artifacts import atomic_file


@checked
def write_report(results: Results, path: str | Path) -> None:
    """Write the results of a benchmark to `path` as an HTML page; equal results give equal bytes.

    The page contains its plots and its short script, and loads nothing. Sections without results are left out.

    Raises:
        InputError: a required part of the results is missing.
    """
    results = checked_results(results)
    Environment = require("jinja2").Environment
    PackageLoader = require("jinja2").PackageLoader
    StrictUndefined = require("jinja2").StrictUndefined

    page = Environment(
        loader=PackageLoader("recotransfer.experiments.benchmark", "."),
        autoescape=True,  # names of items, names of variants and errors may contain any text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {
        "four": four,
        "signed": signed,
        "count": count,
        "chance": chance,
        "seconds": seconds,
        "metric": metric_name,
        "words": lambda key: str(key).replace("_", " "),
        "short": short_value,
    }
    html = page.get_template("report.html.j2").render(_page(results))

    with atomic_file(path) as file:
        file.write(html.encode())


@checked
def table(results: Results) -> str:
    """The main table as plain text, best variant first, with ablations marked and failed variants listed below."""
    results = checked_results(results)
    primary = results["primary"]
    heads = ["variant", "content", f"test {metric_name(primary)}", "95% interval", "difference", "95% interval"]
    heads += ["p, Holm", "valid", "fit s", "users/s", "MiB"]
    rows = [heads]

    for variant in ranked_variants(results):
        best, against = (
            best_figure(results, variant),
            difference_between(results, variant["name"], results["reference"]),
        )
        rows.append(
            [
                variant["name"],
                "ablation" if variant["ablation_of"] else "yes" if variant["content"] else "no",
                four(best["value"]),
                interval_words(best),
                *([signed(against["value"]), interval_words(against, signed), chance(against["p_holm"])] if against
                  else ["reference" if variant["name"] == results["reference"] else "–", "", ""]),
                four(variant["valid"]),
                seconds(variant["seconds"].get("fit")),
                count(variant["users_per_second"]),
                count(variant["memory_mib"]),
            ]
        )  # fmt: skip

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if results["reference"] is not None:
        lines += [
            "",
            f"difference: the variant minus {results['reference']} on the test, paired over users; best variant first",
            f"valid: {metric_name(primary)} on validation, by which settings were chosen",
        ]

    same = [variant for variant in ranked_variants(results) if variant["same_as"]]
    lines += [f"{variant['name']} is {variant['same_as']}: one model, measured once" for variant in same]

    lines += [f"failed: {variant['name']}: {variant['failed']}" for variant in failed_variants(results)]

    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The cells padded to their widths: the first two left-aligned, numbers right-aligned."""
    for n, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if n < 2 else cell.rjust(width)


def _page(results: Results) -> dict[str, Any]:
    """The variables of the template."""
    variants = ranked_variants(results)
    rankings = _rankings(variants)
    against = {
        ranking: {
            variant["name"]: difference_between(results, variant["name"], results["reference"], ranking)
            for variant in variants
        }
        for ranking in rankings
    }
    tables = {kind: _buckets(results, variants, kind) for kind in ("popularity", "ages", "histories")}
    beyond = dict.fromkeys(name for variant in variants for name in variant["beyond"])
    at_k = "@" + results["primary"].partition("@")[2]

    return {
        "results": results,
        "protocol": results["protocol"],
        "environment": results["environment"],
        "variants": variants,
        "failed": failed_variants(results),
        "primary": results["primary"],
        "metrics": metric_names(results),
        "beside": [name for name in metric_names(results)[1:] if "@" not in name or name.endswith(at_k)],
        "rankings": rankings,
        "against": against,
        "apart": [name for name in rankings if name != "all" and any(against[name].values())],
        "verdict": verdict(results),
        "guards": [_guard_rows(found) for found in results["guard"]],
        "facts": {name: _moment(name, value) for name, value in (results["protocol"]["facts"] or {}).items()},
        "buckets": tables,
        "beyond": list(beyond),
        "explained": _explained(results, beyond),
        "plots": _plots(results, variants, tables),
        "level": LEVEL,
        "few": FEW,
    }


def _moment(name: str, value: Any) -> Any:
    """A fact of the split; the time at which a part begins, in seconds since 1970, becomes a date."""
    if not name.endswith("_from") or not is_known(value) or not 1e8 < value < 1e11:
        return value

    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _rankings(variants: Sequence[Variant]) -> list[str]:
    """Names of all rankings, the protocol's own first."""
    names = dict.fromkeys(name for variant in variants for name in variant["rankings"])
    return [name for name in ("all", "mixed", "warm", "cold") if name in names] + [
        name for name in names if name not in ("all", "mixed", "warm", "cold")
    ]


def _buckets(results: Results, variants: Sequence[Variant], kind: str) -> dict[str, Any] | None:
    """The test events in buckets of one kind: the buckets' sizes, and each variant's metrics in them."""
    cut = {variant["name"]: {row["bucket"]: row for row in variant[kind]} for variant in variants}
    first: dict[str, Any] = {}

    for rows in cut.values():
        first = rows | first

    metrics = dict.fromkeys(name for rows in cut.values() for row in rows.values() for name in row if "@" in name)
    if not first or not metrics:
        return None

    order = [name for name in (results["primary"],) if name in metrics]
    sizes = {name: row.get("pairs", row.get("users")) for name, row in first.items()}

    return {
        "metrics": list(dict.fromkeys([*order, *metrics])),
        "sizes": sizes,
        "unit": "pairs" if any("pairs" in row for row in first.values()) else "users",
        "rows": cut,
        "few": [name for name, size in sizes.items() if is_known(size) and 0 < size < FEW],
        "empty": [name for name, size in sizes.items() if size == 0],
    }


def _ends(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value, low and high; NaN if unknown."""
    value, low, high = (
        float(figure[end]) if is_known(figure.get(end)) else math.nan for end in ("value", "low", "high")
    )
    return value, low, high


def _row(results: Results, variant: Variant, figure: Mapping[str, Any] | None) -> Row:
    """The variant as a row of a plot, with its own colour for the reference and another for ablations."""
    tone = "accent" if variant["name"] == results["reference"] else "ablation" if variant["ablation_of"] else "plain"
    return Row(variant["name"], *_ends(figure or {}), tone, bool(variant["content"]))


def _plots(results: Results, variants: Sequence[Variant], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> SVG, each model once; plots without data are left out."""
    from markupsafe import Markup

    variants = [variant for variant in variants if variant["same_as"] is None]

    name = metric_name(results["primary"])
    rows = {variant["name"]: _row(results, variant, best_figure(results, variant)) for variant in variants}
    out: dict[str, str | None] = {}
    if variants:
        out["primary"] = forest(f"{name} of each variant", [Panel("", list(rows.values()))], axis=name)

    against = [
        _row(results, variant, difference_between(results, variant["name"], results["reference"]))
        for variant in variants
    ]
    against = [row for row in against if math.isfinite(row.value)]
    if against:
        title = f"{name} minus that of {results['reference']}"
        out["against"] = forest(title, [Panel("", against)], axis=title, zero=True)

    for key, across, path, log in (
        ("fit", "seconds to fit (log)", ("seconds", "fit"), True),
        ("speed", "users per second when recommending (log)", ("users_per_second",), True),
        ("coverage", "share of the catalogue recommended to someone", ("beyond", _first(variants, "coverage")), False),
        ("novelty", "novelty of what is recommended", ("beyond", _first(variants, "novelty")), False),
    ):
        points = [
            Point(float(x), rows[variant["name"]])
            for variant in variants
            if is_known(x := value_at(variant, *path)) and (x > 0 or not log)
        ]
        if points:
            out[key] = scatter(f"{name} against {across}", points, across=across, up=name, log=log)

    for kind, found in tables.items():
        if found is not None:
            out[kind] = _cut_plot(results, variants, kind, found)

    out["tuning"] = _tuning_plot(results, variants)
    out["training"] = _training_plot(results, variants)
    plots: dict[str, Any] = {key: Markup(svg) for key, svg in out.items() if svg}
    plots["guard"] = [Markup(_guard_plot(results, each)) for each in results["guard"]]

    return plots


def _first(variants: Sequence[Variant], base: str) -> str:
    """The full name, such as "coverage@10", of the first metric that begins with `base`; `base` if there is none."""
    return next((key for variant in variants for key in variant["beyond"] if key.startswith(base)), base)


def _cut_plot(results: Results, variants: Sequence[Variant], kind: str, buckets: Mapping[str, Any]) -> str | None:
    """One panel per bucket that has events."""
    metric = buckets["metrics"][0]
    panels = []
    for bucket, size in buckets["sizes"].items():
        if size == 0:
            continue

        rows = [
            _row(results, variant, buckets["rows"][variant["name"]].get(bucket, {}).get(metric)) for variant in variants
        ]
        panels.append(Panel(bucket, rows, f"n = {count(size)}" + ", few" * (bucket in buckets["few"])))

    name = metric_name(metric)

    return forest(f"{name} by {kind}", panels, axis=name, columns=2) if panels else None


def _guard_rows(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the guard's table: differences over all items, then by bucket with the trust kept in each."""
    overall = (
        ("all, validation", "overall"),
        ("all, test", "test"),
        ("best use, validation", "gained"),
        ("guarded, test", "guarded_test"),
    )
    rows = [{"label": label, "pairs": None, **verdict[key]} for label, key in overall if verdict.get(key)]
    trust = dict(zip(POPULARITY_BUCKET_NAMES, verdict.get("trust") or (), strict=False))
    buckets = verdict.get("buckets") or ()
    rows += [
        {"label": f"{bucket['name']} users, validation", **bucket, "trust": trust.get(bucket["name"])}
        for bucket in buckets
    ]

    for row in rows:
        row["side"] = "" if not is_known(row["low"]) else "good" if row["low"] > 0 else "bad" if row["high"] < 0 else ""

    return rows


def _guard_plot(results: Results, verdict: Mapping[str, Any]) -> str:
    """The differences between a variant and its ablation, overall and by bucket."""
    rows = []
    for row in _guard_rows(verdict):
        label = row["label"] if row["pairs"] is None else f"{row['label']}, {count(row['pairs'])} pairs"
        rows.append(Row(label, *_ends(row), row["side"] or "plain"))

    axis = f"{metric_name(results['primary'])} with content minus without"
    return forest(f"{axis}: {verdict['variant']}", [Panel("", rows)], axis=axis, zero=True, whole=True)


def _tuning_plot(results: Results, variants: Sequence[Variant]) -> str | None:
    """The trials of each tuned variant, and the best value so far."""
    lines = []
    for variant in variants:
        trials = [(trial["number"], trial["value"]) for trial in variant["trials"] if is_known(trial["value"])]
        if len(trials) > 1:
            numbers, values = zip(*trials, strict=True)
            best = [max(values[: n + 1]) for n in range(len(values))]
            lines.append(Line(variant["name"], numbers, values, best, _row(results, variant, None).tone))

    axis = "number of the trial; vertical axis: validation"

    return small_lines("Tuning of each variant", lines, columns=2, axis=axis) if lines else None


def _training_plot(results: Results, variants: Sequence[Variant]) -> str | None:
    """Loss and validation NDCG by epoch of each variant that has a training curve."""
    lines = []
    for variant in variants:
        for key, what in (("loss", "loss"), ("ndcg", "NDCG on validation")):
            steps = [(step["epoch"], step[key]) for step in variant["curve"] or () if is_known(step.get(key))]
            if len(steps) > 1:
                epochs, values = zip(*steps, strict=True)
                lines.append(Line(variant["name"], epochs, values, values, _row(results, variant, None).tone, what))

    return small_lines("Training of each variant", lines, columns=2, axis="epoch", whole=False) if lines else None


_EXPLAINED = {
    "ndcg": "Sum of the hits, discounted by the log2 of their rank, relative to the best possible list; 1 is perfect. "
    "Järvelin and Kekäläinen, 2002.",
    "recall": "Share of a user's held-out items among the first k; with one held-out item it is the hit rate.",
    "precision": "Share of the first k that are held-out items.",
    "hit_rate": "Share of users with at least one held-out item among the first k.",
    "mrr": "Reciprocal rank of the first held-out item within k, otherwise 0.",
    "map": "Sum of the precision at the rank of each hit within k, divided by the possible number of hits.",
    "auc": "Probability that a held-out item ranks above any other item.",
    "coverage": "Share of the catalogue that is in at least one user's list.",
    "gini": "Inequality of how often items are recommended: 0 all equally often, 1 always the same item.",
    "novelty": "Mean of −log2(share of training users who have the item), in bits: higher for rarer items.",
    "average_popularity": "Mean number of training users of the recommended items.",
    "diversity": "One minus the mean cosine over all pairs of a list; 0 if all items are the same.",
    "serendipity": "Share of the first k that are held-out items and not among the k most popular.",
    "calibration": "KL divergence between the categories of a list and of the user's history; 0 if equal. Steck, 2018.",
}


def _explained(results: Results, beyond: Mapping[str, None]) -> dict[str, str]:
    """Displayed name -> definition, for the metrics in the results."""
    bases = dict.fromkeys(name.partition("@")[0] for name in [*metric_names(results), *beyond])
    return {metric_name(base): _EXPLAINED[base] for base in bases if base in _EXPLAINED}
