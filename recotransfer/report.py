"""A benchmark's results as one self-contained HTML page and as a table for the terminal. Measures nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recotransfer.artifacts import atomic_file
from recotransfer.charts import LABEL, Line, Panel, Point, Row, forest, scatter, shortened, small_lines
from recotransfer.errors import InputError
from recotransfer.metrics import POPULARITY_BUCKET_NAMES

FORMAT = 1
FEW = 30  # pairs under which a bucket's figures are an anecdote
LEVEL = 0.05  # of significance, after Holm's correction
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


def write_report(results: Results, path: str | Path) -> None:
    """Write the page that shows `results` of a benchmark; equal results give equal bytes.

    The page holds its pictures and its few lines of script, and loads nothing from anywhere.

    Raises:
        InputError: a required part of the results is missing; absent optional parts leave their section out.
    """
    results = _checked(results)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(
        loader=PackageLoader("recotransfer", "."),
        autoescape=True,  # names of items, arms and errors are anyone's text
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


def table(results: Results) -> str:
    """The main table in plain text, best arm first; control arms are marked, failed ones say why below it."""
    results = _checked(results)
    primary = results["primary"]
    heads = ["arm", "content", metric_name(primary), "95% interval", "difference", "95% interval", "p (Holm)"]
    heads += ["valid", "fit s", "users/s", "MiB"]
    rows = [heads]
    for arm in _ranked(results):
        best, against = _best(results, arm), _difference(results, arm["name"], results["reference"])
        rows.append(
            [
                arm["name"],
                "control" if arm["control_of"] else "yes" if arm["content"] else "no",
                four(best["value"]),
                _between(best),
                *([signed(against["value"]), _between(against, signed), chance(against["p_holm"])] if against
                  else ["reference" if arm["name"] == results["reference"] else "–", "", ""]),
                four(arm["valid"]),
                seconds(arm["seconds"].get("fit")),
                count(arm["users_per_second"]),
                count(arm["memory_mib"]),
            ]
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if results["reference"] is not None:
        lines += ["", f"difference: the arm minus {results['reference']}, paired over users; the best arm comes first"]
    lines += [f"failed: {arm['name']}: {arm['failed']}" for arm in _failed(results)]
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for n, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if n < 2 else cell.rjust(width)


# -- what the results hold ---------------------------------------------------------------------------------------------


def _checked(results: Results) -> Results:
    """The results, optional parts of its arms filled in with nothing."""
    if results.get("format") != FORMAT:
        raise InputError(f"results have format {results.get('format')!r}; this version reads format {FORMAT}")
    if missing := [key for key in _REQUIRED if key not in results]:
        raise InputError(f"results hold no {', '.join(missing)}; give what the benchmark wrote, unchanged")
    for arm in results["arms"]:
        if missing := [key for key in ("name", "content") if key not in arm]:
            raise InputError(f"arm {arm.get('name', '?')!r} holds no {', '.join(missing)}; benchmark it again")
        if not arm.get("failed") and results["primary"] not in _of(arm, "rankings", "all", "metrics"):
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


def _of(value: Mapping[str, Any], *keys: str) -> Any:
    """What stands at the path of keys; an empty mapping where the path ends early."""
    for key in keys:
        value = value.get(key) or {}
    return value


def _ranked(results: Results) -> list[Arm]:
    """Arms that ran, the best on test first."""
    ran = [arm for arm in results["arms"] if not arm["failed"]]
    return sorted(ran, key=lambda arm: -_best(results, arm)["value"])


def _failed(results: Results) -> list[Arm]:
    return [arm for arm in results["arms"] if arm["failed"]]


def _best(results: Results, arm: Arm) -> Mapping[str, float]:
    """The arm's primary figure, with its interval."""
    found: Mapping[str, float] = arm["rankings"]["all"]["metrics"][results["primary"]]
    return found


def _metrics(results: Results) -> list[str]:
    """Metrics of the ranking "all", the primary one first."""
    found = dict.fromkeys(name for arm in _ranked(results) for name in arm["rankings"]["all"]["metrics"])
    return list(dict.fromkeys([results["primary"], *found]))


def _difference(results: Results, one: str, other: str, ranking: str = "all") -> dict[str, float] | None:
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


# -- figures into text -------------------------------------------------------------------------------------------------


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def four(value: Any) -> str:
    """A metric: four decimals."""
    if not _known(value):
        return "–"
    return f"{value:.4f}".replace("-", "−")


def signed(value: Any) -> str:
    """A difference, its sign always written."""
    return ("+" if _known(value) and value > 0 else "") + four(value)


def count(value: Any) -> str:
    """A count, thousands apart."""
    return f"{value:,.0f}" if _known(value) else "–"


def chance(value: Any) -> str:
    """A p value to three decimals."""
    return "–" if not _known(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: Any) -> str:
    """Seconds to about three digits."""
    return "–" if not _known(value) else f"{value:.2f}" if value < 10 else f"{value:,.{int(value < 100)}f}"


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


def _between(figure: Mapping[str, float], write: Callable[[Any], str] = four) -> str:
    return f"[{write(figure.get('low'))}, {write(figure.get('high'))}]"


_NAMES = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "auc": "AUC", "hit_rate": "Hit rate"}


def metric_name(name: str) -> str:
    """The metric as the field writes it: "ndcg@10" is "NDCG@10"."""
    base, at, k = name.partition("@")
    return _NAMES.get(base, base.replace("_", " ").capitalize()) + at + k


# -- the verdict -------------------------------------------------------------------------------------------------------


def verdict(results: Results) -> list[str]:
    """Plain sentences: who is best and by how much, whether that is more than chance, whether transfer helped."""
    results = _checked(results)
    arms = _ranked(results)
    if not arms:
        return ["No arm finished, so there is nothing to compare."]
    best, name = arms[0], metric_name(results["primary"])
    figure = _best(results, best)
    users = best["rankings"]["all"].get("users")
    said = [
        f"{best['name']} is best: {name} {four(figure['value'])} {_between(figure)} over {count(users)} test users."
    ]
    if others := [arm for arm in arms if not _alike(best, arm)]:
        said += _leads(results, best, others)
    said += _transfers(results, best)
    said += _doubts(results, arms)
    return said


def _alike(best: Arm, other: Arm) -> bool:
    """Whether two arms are one model: an arm and its guarded form, or the control arm that the guard fell back to."""
    if (best["guard_of"] or best["name"]) == (other["guard_of"] or other["name"]):
        return True
    return any(
        a["guard_of"] and not a["content"] and b["control_of"] == a["guard_of"]
        for a, b in ((best, other), (other, best))
    )


def _leads(results: Results, best: Arm, others: Sequence[Arm]) -> Iterator[str]:
    second = others[0]
    across = next((arm for arm in others if arm["content"] != best["content"]), None)
    kind = "without content" if best["content"] else "with content"
    if across is second:
        yield _lead(results, best, second, f"the runner-up {second['name']}, also the best arm {kind},")
        return
    yield _lead(results, best, second, f"the runner-up {second['name']}")
    if across is not None:
        yield _lead(results, best, across, f"the best arm {kind}, {across['name']},")


def _lead(results: Results, best: Arm, other: Arm, whom: str) -> str:
    found = _difference(results, best["name"], other["name"])
    if found is None:
        ours, theirs = _best(results, best), _best(results, other)
        apart = "do not overlap" if ours["low"] > theirs["high"] else "overlap"
        gap = signed(ours["value"] - theirs["value"])
        return f"Its lead over {whom} is {gap}; the two were not tested against each other, their intervals {apart}."
    told = f"Its lead over {whom} is {signed(found['value'])} {_between(found, signed)}"
    if found["p_holm"] < LEVEL:
        return f"{told}, significant after Holm's correction ({_p(found['p_holm'])})."
    return f"{told}, not significant after Holm's correction ({_p(found['p_holm'])}): take the two as tied."


def _p(value: float) -> str:
    return f"p {chance(value)}" if value < 0.001 else f"p = {chance(value)}"


def _transfers(results: Results, best: Arm) -> Iterator[str]:
    """Whether content helped: the guard's first words on the arm that matters most, in short for the others."""
    first = (best["name"], best["guard_of"], results["reference"])
    found = sorted(results["guard"], key=lambda each: each["arm"] not in first)
    for n, each in enumerate(found):
        if n == 0:
            words = each["words"].split(". ")[0].rstrip(".")
            yield f"{each['arm']} against its control arm, {each['control']}: {words}."
        else:
            effect = {"helps": "helps", "hurts": "hurts"}.get(each["helped"], "makes no difference to")
            told = each.get("test") or each["overall"]
            yield f"Content {effect} {each['arm']}: {signed(told['value'])} {_between(told, signed)}."


def _doubts(results: Results, arms: Sequence[Arm]) -> Iterator[str]:
    """What a reader should hold against the first sentence."""
    judged = [arm for arm in arms if _known(arm["valid"])]
    if len(judged) > 1:
        chosen = max(judged, key=lambda arm: float(arm["valid"]))
        if chosen is not arms[0]:
            figure = _best(results, chosen)
            yield (
                f"Validation alone would have picked {chosen['name']} (test {four(figure['value'])} "
                f"{_between(figure)}), so being best here may in part be the luck of this test set."
            )
        else:
            yield "It is also best on validation, which is where a choice would be made."
    users = arms[0]["rankings"]["all"].get("users")
    if _known(users) and users < FEW:
        yield f"Only {count(users)} users were tested: take none of this as settled."
    if failed := _failed(results):
        yield f"{len(failed)} of {len(results['arms'])} arms failed: {', '.join(arm['name'] for arm in failed)}."


# -- the page ----------------------------------------------------------------------------------------------------------


def _page(results: Results) -> dict[str, Any]:
    """Everything the template names."""
    arms = _ranked(results)
    rankings = _rankings(arms)
    against = {
        ranking: {arm["name"]: _difference(results, arm["name"], results["reference"], ranking) for arm in arms}
        for ranking in rankings
    }
    tables = {kind: _buckets(results, arms, kind) for kind in ("popularity", "ages", "histories")}
    beyond = dict.fromkeys(name for arm in arms for name in arm["beyond"])
    at_k = "@" + results["primary"].partition("@")[2]
    return {
        "results": results,
        "protocol": results["protocol"],
        "environment": results["environment"],
        "arms": arms,
        "failed": _failed(results),
        "primary": results["primary"],
        "metrics": _metrics(results),
        "beside": [name for name in _metrics(results)[1:] if "@" not in name or name.endswith(at_k)],
        "rankings": rankings,
        "against": against,
        "apart": [name for name in rankings if name != "all" and any(against[name].values())],
        "verdict": verdict(results),
        "guards": [_guard_rows(found) for found in results["guard"]],
        "facts": {name: _moment(name, value) for name, value in (results["protocol"]["facts"] or {}).items()},
        "buckets": tables,
        "beyond": list(beyond),
        "explained": _explained(results, beyond),
        "plots": _plots(results, arms, tables),
        "level": LEVEL,
        "few": FEW,
    }


def _moment(name: str, value: Any) -> Any:
    """Seconds since 1970 of a cut as a date; any other fact as it is."""
    if not name.endswith("_from") or not _known(value) or not 1e8 < value < 1e11:
        return value
    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _rankings(arms: Sequence[Arm]) -> list[str]:
    """Rankings that some arm has, the protocol's own first."""
    found = dict.fromkeys(name for arm in arms for name in arm["rankings"])
    return [name for name in ("all", "mixed", "warm", "cold") if name in found] + [
        name for name in found if name not in ("all", "mixed", "warm", "cold")
    ]


def _buckets(results: Results, arms: Sequence[Arm], kind: str) -> dict[str, Any] | None:
    """One way of cutting the test: names and sizes of its buckets, and each arm's figures in them, by metric."""
    cut = {arm["name"]: {row["bucket"]: row for row in arm[kind]} for arm in arms}
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
        "few": [name for name, size in sizes.items() if _known(size) and 0 < size < FEW],
        "empty": [name for name, size in sizes.items() if size == 0],
    }


def _ends(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value, low and high; NaN for what is not known."""
    value, low, high = (float(figure[end]) if _known(figure.get(end)) else math.nan for end in ("value", "low", "high"))
    return value, low, high


def _row(results: Results, arm: Arm, figure: Mapping[str, Any] | None) -> Row:
    """The arm as a row of a plot: the reference and the control arms have colours of their own."""
    tone = "accent" if arm["name"] == results["reference"] else "control" if arm["control_of"] else "plain"
    return Row(arm["label"], *_ends(figure or {}), tone, bool(arm["content"]))


def _plots(results: Results, arms: Sequence[Arm], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> picture; a picture whose figures are absent is absent."""
    from markupsafe import Markup

    name = metric_name(results["primary"])
    rows = {arm["name"]: _row(results, arm, _best(results, arm)) for arm in arms}
    out: dict[str, str | None] = {}
    if arms:
        out["primary"] = forest(f"{name} of each arm", [Panel("", list(rows.values()))], axis=name)
    against = [_row(results, arm, _difference(results, arm["name"], results["reference"])) for arm in arms]
    against = [row for row in against if math.isfinite(row.value)]
    if against:
        title = f"{name} minus that of {results['reference']}"
        out["against"] = forest(title, [Panel("", against)], axis=title, zero=True)
    for key, across, path, log in (
        ("fit", "seconds to fit (log)", ("seconds", "fit"), True),
        ("speed", "users per second when recommending (log)", ("users_per_second",), True),
        ("coverage", "share of the catalogue recommended to someone", ("beyond", _first(arms, "coverage")), False),
        ("novelty", "novelty of what is recommended", ("beyond", _first(arms, "novelty")), False),
    ):
        points = [
            Point(float(x), rows[arm["name"]]) for arm in arms if _known(x := _of(arm, *path)) and (x > 0 or not log)
        ]
        if points:
            out[key] = scatter(f"{name} against {across}", points, across=across, up=name, log=log)
    for kind, found in tables.items():
        if found is not None:
            out[kind] = _cut_plot(results, arms, kind, found)
    out["tuning"] = _tuning_plot(results, arms)
    out["training"] = _training_plot(results, arms)
    plots: dict[str, Any] = {key: Markup(svg) for key, svg in out.items() if svg}
    plots["guard"] = [Markup(_guard_plot(results, each)) for each in results["guard"]]
    return plots


def _first(arms: Sequence[Arm], base: str) -> str:
    """The metric of that name at the first list length given."""
    return next((key for arm in arms for key in arm["beyond"] if key.startswith(base)), base)


def _cut_plot(results: Results, arms: Sequence[Arm], kind: str, found: Mapping[str, Any]) -> str | None:
    metric = found["metrics"][0]
    panels = []
    for bucket, size in found["sizes"].items():
        if size == 0:
            continue
        rows = [_row(results, arm, found["rows"][arm["name"]].get(bucket, {}).get(metric)) for arm in arms]
        panels.append(Panel(bucket, rows, f"n = {count(size)}" + ", few" * (bucket in found["few"])))
    name = metric_name(metric)
    return forest(f"{name} by {kind}", panels, axis=name, columns=2) if panels else None


def _guard_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of the guard's table: the arms as wholes, then the buckets with the trust kept in each."""
    wholes = (
        ("all, validation", "overall"),
        ("all, test", "test"),
        ("best use, validation", "gained"),
        ("guarded, test", "guarded_test"),
    )
    rows = [{"label": label, "pairs": None, **found[key]} for label, key in wholes if found.get(key)]
    trust = dict(zip(POPULARITY_BUCKET_NAMES, found.get("trust") or (), strict=False))
    parts = found.get("buckets") or ()
    rows += [{"label": part["name"], **part, "trust": trust.get(part["name"])} for part in parts]
    for row in rows:
        row["side"] = "" if not _known(row["low"]) else "good" if row["low"] > 0 else "bad" if row["high"] < 0 else ""
    return rows


def _guard_plot(results: Results, found: Mapping[str, Any]) -> str:
    rows = []
    for row in _guard_rows(found):
        label = row["label"] if row["pairs"] is None else f"{row['label']} · {count(row['pairs'])} pairs"
        rows.append(Row(label, *_ends(row), row["side"] or "plain"))
    axis = f"{metric_name(results['primary'])} with content minus without"
    return forest(f"{axis}: {found['arm']}", [Panel("", rows)], axis=axis, zero=True)


def _tuning_plot(results: Results, arms: Sequence[Arm]) -> str | None:
    lines = []
    for arm in arms:
        tried = [(trial["number"], trial["value"]) for trial in arm["trials"] if _known(trial["value"])]
        if len(tried) > 1:
            numbers, values = zip(*tried, strict=True)
            best = [max(values[: n + 1]) for n in range(len(values))]
            lines.append(Line(arm["label"], numbers, values, best, _row(results, arm, None).tone))
    axis = "number of the trial; upright: validation"
    return small_lines("Tuning of each arm", lines, columns=2, axis=axis) if lines else None


def _training_plot(results: Results, arms: Sequence[Arm]) -> str | None:
    lines = []
    for arm in arms:
        for key, what in (("loss", "loss"), ("ndcg", "NDCG on validation")):
            steps = [(step["epoch"], step[key]) for step in arm["curve"] or () if _known(step.get(key))]
            if len(steps) > 1:
                epochs, values = zip(*steps, strict=True)
                lines.append(Line(arm["label"], epochs, values, values, _row(results, arm, None).tone, what))
    return small_lines("Training of each arm", lines, columns=2, axis="epoch", whole=False) if lines else None


# -- how to read this --------------------------------------------------------------------------------------------------

_EXPLAINED = {
    "ndcg": "Hits count less the lower they stand (log2 discount), relative to the best possible list; 1 is perfect. "
    "Järvelin and Kekäläinen, 2002.",
    "recall": "Share of a user's held-out items among the first k; with one held-out item it is the hit rate.",
    "precision": "Share of the first k that are held-out items.",
    "hit_rate": "Share of users with at least one held-out item among the first k.",
    "mrr": "One over the rank of the first held-out item within k, else 0.",
    "map": "Precision at the rank of each hit within k, summed, over the hits there could be.",
    "auc": "Chance that a held-out item stands above one that is not.",
    "coverage": "Share of the catalogue that is in at least one user's list.",
    "gini": "How unevenly the lists use the catalogue: 0 all items alike, 1 always the same.",
    "novelty": "Mean of −log2(share of training users who have the item), in bits: rarer is more.",
    "average_popularity": "Mean number of training users of the items listed.",
    "diversity": "One minus the mean cosine of all pairs of a list: 0 all alike.",
    "serendipity": "Share of the k places with a held-out item that the list of the most popular does not hold.",
    "calibration": "How far a list's mix of categories is from the user's history (KL): 0 the same. Steck, 2018.",
}


def _explained(results: Results, beyond: Mapping[str, None]) -> dict[str, str]:
    """Metric as written -> what it is, for those that occur."""
    bases = dict.fromkeys(name.partition("@")[0] for name in [*_metrics(results), *beyond])
    return {metric_name(base): _EXPLAINED[base] for base in bases if base in _EXPLAINED}
