"""The report of a benchmark: complete, safe to open, the same bytes for the same results."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from recotransfer.errors import InputError
from recotransfer.experiments.benchmark import table, write_report
from recotransfer.experiments.benchmark.charts import LABEL, Panel, Point, Row, forest, scatter, wrapped
from recotransfer.experiments.benchmark.wording import verdict

VARIANTS = [  # name, class, content, ablation of, NDCG@10, fit seconds, users per second, training epochs
    ("HybridItems", "HybridItems", True, None, 0.0614, 6.4, 21_400, 0),
    ("HybridItems without content", "HybridItems", False, "HybridItems", 0.0545, 4.1, 23_900, 0),
    ("SASRec with text", "SASRec", True, None, 0.0586, 412.0, 3_150, 12),
    ("SASRec without text", "SASRec", False, "SASRec with text", 0.0531, 388.0, 3_260, 12),
    ("EASE", "EASE", False, None, 0.0455, 3.8, 24_700, 0),
    ("ItemKNN", "ItemKNN", False, None, 0.0402, 0.9, 26_300, 0),
    ("RidgeProfiles", "RidgeProfiles", True, None, 0.0391, 1.2, 31_000, 0),
    ("ALS", "ALS", False, None, 0.0318, 9.7, 38_800, 0),
    ("ContentProfiles", "ContentProfiles", True, None, 0.0287, 0.2, 30_200, 0),
    ("BPR", "BPR", False, None, 0.0263, 14.5, 39_100, 10),
    ("Popularity", "Popularity", False, None, 0.0048, 0.05, 52_000, 0),
]
SHARES = {"ndcg@10": 1, "recall@10": 1.64, "precision@10": 0.164, "hit_rate@10": 1.64, "mrr@10": 0.71, "map@10": 0.71}


def estimate(value, users):
    half = 1.96 * max(value, 0.003) * 3.1 / users**0.5
    return {"value": round(value, 5), "low": round(max(value - half, 0.0), 5), "high": round(value + half, 5)}


def difference(value, users):
    half = 1.96 * 0.11 / users**0.5
    p = float(np.exp(-((value / half * 1.96) ** 2) / 2))
    return {"value": round(value, 5), "low": round(value - half, 5), "high": round(value + half, 5), "p": p}


def cut(value, shares, sizes, content):
    rows = []
    for n, (bucket, size) in enumerate(sizes.items()):
        share = shares[n] if content or n else 0.0
        row = {"bucket": bucket, "pairs": size, "users": size}
        if size:
            row |= {"recall@10": estimate(1.64 * value * share, size), "ndcg@10": estimate(value * share, size)}
        rows.append(row)
    return rows


def an_variant(rng, name, kind, content, ablation_of, value, fit, speed, epochs):
    valid = value * 1.08 + 0.0004
    tried = (valid * (1 - rng.random(20) ** 2 * 0.4)).tolist()
    tried[int(rng.integers(4, 19))] = valid
    curve = [
        {"epoch": n + 1, "loss": 5.1 * 0.8**n + 2.2, "ndcg": valid * (1 - 0.7**n), "seconds": fit / epochs}
        for n in range(epochs)
    ]
    tuned = kind != "Popularity"
    return {
        "name": name, "class": kind, "content": content, "ablation_of": ablation_of,
        "settings": {"reg": 118.4, "history_decay": 0.61, "neighbours": 100} if tuned else {},
        "weights": {"text": 1.0, "image": 0.35} if content else None,
        "tuned": tuned, "given": {"form": "sparse"} if kind == "HybridItems" else {},
        "trials": [{"number": n, "value": v, "settings": {"reg": 10.0}} for n, v in enumerate(tried)] if tuned else [],
        "curve": curve or None, "valid": valid,
        "rankings": {
            "all": {"users": 22_363, "metrics": {m: estimate(s * value, 22_363) for m, s in SHARES.items()}
                    | {"auc": estimate(0.55 + 4 * value, 22_363)}},
            "warm": {"users": 22_229, "metrics": {m: estimate(s * value * 1.01, 22_229) for m, s in SHARES.items()}},
            "cold": {"users": 134, "metrics": {m: estimate(s * 0.21 * content, 134) for m, s in SHARES.items()}},
        },
        "popularity": cut(value, (0.3, 0.55, 0.8, 1.3), {"0": 24, "1-5": 4_410, "6-20": 9_871, ">20": 8_058}, content),
        "ages": cut(value, (0.2, 0.9, 1.3, 1.1, 0.9, 0.8), {"no event yet": 24, "under a week": 311, "1-4 weeks": 902,
                    "1-6 months": 5_120, "6-12 months": 6_007, "over a year": 9_999}, content),
        "histories": cut(value, (0, 0, 0.9, 1.1, 1.2, 1.0), {"none": 0, "1-2": 0, "3-5": 15_902, "6-10": 4_870,
                         "11-20": 1_320, "over 20": 271}, True),
        "beyond": {"coverage@10": 0.9 - 6 * abs(value - 0.04) - 0.2 * (value < 0.01),
                   "gini@10": 0.55 + 0.2 * rng.random(), "novelty@10": 9 + 2 * rng.random(),
                   "average_popularity@10": 30 + 90 * rng.random(), "diversity@10": 0.5 + 0.2 * rng.random(),
                   "serendipity@10": value / 2, "calibration@10": 0.4 - value},
        "seconds": {"tune": fit * 20, "fit": fit, "recommend": 22_363 / speed},
        "users_per_second": speed, "memory_mib": 480 + 9 * fit, "failed": None,
    }  # fmt: skip


def fake():
    """Results of a benchmark that was never run, alike to those of one that was."""
    rng = np.random.default_rng(7)
    variants = [an_variant(rng, *variant) for variant in VARIANTS]
    variants.insert(1, an_variant(rng, "HybridItems guarded", "HybridItems", True, None, 0.0618, 6.4, 21_380, 0))
    variants[1] |= {"guard_of": "HybridItems", "tuned": False, "trials": [], "valid": 0.0661}
    variants.append({
        "name": "ALS <b>of & text</b>", "class": "ALS", "content": True, "ablation_of": None, "tuned": True,
        "failed": "MemoryError: <img src=x onerror=alert(1)> 12 GiB",
    })  # fmt: skip
    comparisons = []
    for variant in variants[1:-1]:
        found = difference(variant["rankings"]["all"]["metrics"]["ndcg@10"]["value"] - 0.0614, 22_363)
        found["p_holm"] = min(1.0, 3 * found["p"])
        comparisons.append({"variant": variant["name"], "against": "HybridItems", "metric": "ndcg@10", **found})
    for variant in variants[1:-1]:
        found = difference(variant["rankings"]["warm"]["metrics"]["ndcg@10"]["value"] - 0.0620, 22_229) | {
            "p_holm": 0.0312
        }
        comparisons.append(comparisons[0] | {"ranking": "warm", "variant": variant["name"], **found})
    buckets = {"0": (24, 0.041), "1-5": (4_390, 0.0152), "6-20": (9_902, 0.0079), ">20": (8_071, -0.0011)}
    guard = []
    for variant, ablation in (
        ("HybridItems", "HybridItems without content"),
        ("SASRec with text", "SASRec without text"),
    ):
        parts = [{"name": n, "pairs": size, "ablation": 0.05, "transfer": 0.05 + v, **difference(v, size)}
                 for n, (size, v) in buckets.items()]  # fmt: skip
        guard.append({
            "variant": variant, "ablation": ablation, "helped": "helps", "overall": difference(0.0071, 22_363),
            "buckets": parts,
            "words": "Content helps in part: switched off for items of >20 users it gains +0.0077 (95% interval "
            "+0.0063 to +0.0091) of NDCG@10. Everywhere: NDCG@10 0.0663 with content against 0.0592 without, +0.0071 "
            "(95% interval +0.0057 to +0.0085). By training users of the true item, it helps for 1-5 (+0.0152, 4390 "
            "pairs) and 6-20 (+0.0079, 9902 pairs); nothing can be told for 0 (+0.0410, 24 pairs) and >20 (-0.0011, "
            "8071 pairs).",
            "trust": [1, 1, 1, 0], "gained": difference(0.0077, 22_363), "test": difference(0.0069, 22_363),
            "guarded_test": difference(0.0073, 22_363),
        })  # fmt: skip
    return {
        "format": 1, "title": "Beauty: next item, all items ranked", "created": "2026-11-21",
        "environment": {"machine": "x86_64, 2 cores, 8 GiB", "python": "3.11.7", "commit": "2a017fc", "threads": 2,
                        "workers": 1, "command": "recotransfer benchmark --data beauty --k 10 --trials 20",
                        "packages": {"numpy": "2.4.6", "scipy": "1.17.1", "torch": "2.13.0"}},
        "protocol": {"split": "leave-last", "form": "strict", "k": [10], "trials": 20, "seed": 0, "users": 22_363,
                     "items": 12_101, "train_events": 153_776, "valid_events": 22_363, "test_events": 22_363,
                     "test_users": 22_363, "items_without_training_events": 42, "encoders": ["all-MiniLM-L6-v2"],
                     "facts": {"valid": "the event before the last", "test": "the last event of each user",
                               "ties": "events at the same second keep the order of the file", "seed": 0,
                               "left_out": {"users_with_under_3_events": 0, "repeated_events": 1_204}}},
        "primary": "ndcg@10", "reference": "HybridItems", "variants": variants, "comparisons": comparisons,
        "guard": guard,
        "transferability": [{"encoder": "all-MiniLM-L6-v2", "score": "LogME", "value": 0.4123,
                             "note": "higher is better; comparable within one data set only"}],
    }  # fmt: skip


class Page(HTMLParser):
    """What a browser would read: tags with their attributes, and the text outside style and script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.text += data


def written(results, tmp_path, name="report.html"):
    write_report(results, tmp_path / name)
    return (tmp_path / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return written(fake(), tmp_path_factory.mktemp("report"))


def test_every_variant_and_every_figure_is_on_the_page(html):
    text = Page(html).text
    for variant in fake()["variants"]:
        assert variant["name"] in text
        if variant["failed"]:
            assert variant["failed"] in text
            continue
        for ranking, found in variant["rankings"].items():
            for metric, figure in found["metrics"].items():
                if ranking == "all" or metric == "ndcg@10":
                    assert f"{figure['value']:.4f}[{figure['low']:.4f}, {figure['high']:.4f}]" in text
        for kind in ("popularity", "ages", "histories"):
            for row in variant[kind]:
                for figure in (row[name] for name in row if "@" in name):
                    assert f"{figure['value']:.4f}[{figure['low']:.4f}, {figure['high']:.4f}]" in text
        for name, value in variant["beyond"].items():
            assert name.startswith("average_popularity") or f"{value:.4f}" in text
    for found in fake()["comparisons"]:
        told = "{value:+.4f}[{low:+.4f}, {high:+.4f}]".format(**found).replace("-", "−")
        assert (told + "p 0.031" if found.get("ranking") == "warm" else told) in text
    for found in fake()["guard"]:
        assert found["words"] in text
        assert f"{found['guarded_test']['value']:+.4f}" in text
    assert "22,363" in text
    assert "153,776" in text
    assert fake()["environment"]["command"] in text


def test_the_table_of_variants_is_sorted_by_the_primary_metric(html):
    body = html[html.index('id="variants"') :]
    values = [float(v) for v in re.findall(r'class="best" data-v="([^"]+)"', body)]
    assert len(values) == len(VARIANTS) + 1
    assert values == sorted(values, reverse=True)
    assert body.index(">ablation of HybridItems<") < body.index(">failed: ")


def test_anyones_text_stays_text(tmp_path):
    results = small()
    evil = '"><script>alert("x")</script><img src=//evil.example/x>$a_b$ 日本 </svg>'
    results["title"] = results["environment"]["command"] = evil
    results["variants"][2]["name"] = results["variants"][2]["settings"]["reg"] = evil
    results["variants"][2]["popularity"][1]["bucket"] = results["protocol"]["facts"][evil] = evil
    results["guard"][0]["words"] = results["guard"][0]["buckets"][0]["name"] = evil
    page = Page(written(results, tmp_path))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) > 10


def test_nothing_is_loaded_from_anywhere(html):
    tags = Page(html).tags
    for tag, attributes in tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "a", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    named = re.findall(r' id="([^"]+)"', html)
    for target in re.findall(r'(?:href="|url\()#([\w-]+)', html):
        assert target in named


def test_pictures_take_the_colours_and_the_font_of_the_page(html):
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 13
    for picture in pictures:
        assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(?:href="|url\(|id=")#?\w+', "", picture))
        assert "DejaVu" not in picture
    named = [name for picture in pictures for name in set(re.findall(r'clipPath id="([^"]+)"', picture))]
    assert len(named) == len(set(named)), "one picture's clips must not cut another's"


def test_the_same_results_give_the_same_bytes(html, tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):  # a reader's own style
        again = written(json.loads(json.dumps(fake())), tmp_path)
        assert mpl.rcParams["font.size"] == 30
    assert again == html


def test_labels_of_a_scatter_do_not_touch(html):
    for picture in re.findall(r'<svg[^>]*aria-label="[^"]* against .*?</svg>', html, flags=re.DOTALL):
        found = re.findall(
            r'font-size: 11px;[^>]*?(?:text-anchor: (\w+))?; fill[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)', picture
        )
        boxes = []
        for anchor, x, y, text in found:
            wide = 5.5 * len(text)
            left = float(x) - {"": 0, "start": 0, "middle": wide / 2, "end": wide}[anchor]
            boxes.append((left, left + wide, float(y)))
        assert len(boxes) >= 12
        for n, (left, right, y) in enumerate(boxes):
            assert -5 <= left < right <= 460
            for other_left, other_right, other_y in boxes[:n]:
                assert abs(y - other_y) >= 10 or left >= other_right or right <= other_left


def test_small_buckets_are_marked(html):
    text = Page(html).text
    assert "Fewer than 30 pairs in “0”" in text
    assert "Fewer than 30 pairs in “no event yet”" in text
    assert "No pairs in “none”, “1-2”" in text
    assert "n = 24, few" in text
    assert "n = 311, few" not in text


def said(results):
    return " ".join(verdict(results))


def test_the_verdict_says_what_is_more_than_chance(html):
    results = fake()
    assert said(results) in " ".join(Page(html).text.split())
    del results["variants"][1]
    told = said(results)
    assert "HybridItems is best on the test: NDCG@10 0.0614 [0.0589, 0.0639] over 22,363 users." in told
    assert "runner-up SASRec with text is +0.0028 [+0.0014, +0.0042], significant after Holm" in told
    assert "best variant without content, HybridItems without content, is +0.0069" in told
    assert "Content helps in part: switched off for items of >20 users it gains +0.0077" in told
    assert "also best on validation" in told
    results["comparisons"][1]["p_holm"] = 0.2
    assert "(p = 0.200): take the two as tied." in said(results)


def test_the_verdict_owns_up_to_what_speaks_against_it():
    results = fake()
    assert "Validation alone would have picked HybridItems (on the test 0.0614" in said(results)
    assert "1 of 13 variants failed" in said(results)
    results["comparisons"] = []
    assert "were not tested against each other, their intervals overlap." in said(results)
    assert "were not tested against each other, their intervals do not overlap." in said(results)
    for variant in results["variants"][:-1]:
        variant["rankings"]["all"]["users"] = 12
    assert "Number of users tested: only 12" in said(results)


def guarded_as(results, name):
    """The results if the guard had made the guarded form of HybridItems equal to the variant `name`."""
    original = next(variant for variant in results["variants"] if variant["name"] == name)
    results["variants"][1] = copy.deepcopy(original) | {
        "name": "HybridItems guarded", "guard_of": "HybridItems", "ablation_of": None, "same_as": name,
    }  # fmt: skip
    results["comparisons"] = [row for row in results["comparisons"] if row["variant"] != "HybridItems guarded"]
    return results


@pytest.mark.parametrize("knows", [True, False], ids=["told", "of an earlier version"])
def test_a_guarded_variant_that_is_its_ablation_is_neither_winner_nor_runner_up(knows, tmp_path):
    results = guarded_as(fake(), "HybridItems without content")
    if not knows:
        del results["variants"][1]["same_as"]
        results["variants"][1] |= {"users_per_second": 12_345, "memory_mib": 77}
    rows = [
        line.split()[-3:]
        for line in table(results).splitlines()
        if re.match("HybridItems (guarded|without content) .*\\[", line)
    ]
    assert len(rows) == 2
    assert rows[0] == rows[1]
    told = said(results)
    assert "runner-up SASRec with text" in told
    assert "best variant without content, HybridItems without content," in told
    assert "HybridItems guarded" not in told
    results["variants"] = [variant for variant in results["variants"] if "Items" not in variant["name"]] + [
        variant for variant in results["variants"] if variant["name"] in ("HybridItems guarded", "EASE")
        or variant["name"] == "HybridItems without content"
    ][:-1]  # fmt: skip
    results |= {"reference": "SASRec without text", "guard": []}
    del results["variants"][0]
    told = said(results)
    assert told.startswith("HybridItems without content is best on the test")
    assert "HybridItems guarded is the same model: the guard kept no content." in told
    assert "the runner-up SASRec without text" in told
    page = written(results, tmp_path)
    assert "the same model as HybridItems without content, measured once" in page
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "HybridItems without content<" in pictures
    assert "HybridItems guarded<" not in pictures


def test_a_guarded_variant_that_kept_all_content_is_the_variant():
    results = guarded_as(fake(), "HybridItems")
    told = said(results)
    assert told.startswith("HybridItems is best on the test")
    assert "HybridItems guarded is the same model: the guard kept all content." in told
    assert "It is also best on validation" in told
    assert "HybridItems guarded is HybridItems: one model, measured once" in table(results)


def test_figures_of_validation_and_test_are_told_apart(html):
    told = said(fake())
    found = fake()["guard"][0]
    assert f"On the test, content adds {found['test']['value']:+.4f}" in told
    assert "On validation, where the guard decided about HybridItems: Content helps in part" in told
    assert "content helps SASRec with text; on the test, all of it adds +0.0069" in told
    text = Page(html).text
    assert text.count("On validation: Content helps in part") == 2
    for label in ("all, validation", "all, test", "guarded, test", "1-5 users, validation"):
        assert label in text
    head = html[html.index("<thead>", html.index('id="variants"')) : html.index("</thead>")]
    assert "test NDCG@10" in head
    assert ">validation<" in head
    assert table(fake()).splitlines()[0].split()[2:4] == ["test", "NDCG@10"]
    assert "valid: NDCG@10 on validation" in table(fake())


def test_the_verdict_tells_how_cold_items_are_ranked():
    results = fake()
    assert "It is also best among cold items (without training events): NDCG@10 0.2100" in said(results)
    cold = {variant["name"]: variant["rankings"]["cold"] for variant in results["variants"][:-1]}
    cold["RidgeProfiles"]["metrics"]["ndcg@10"] = estimate(0.3, 134)
    assert (
        "Best among cold items (without training events) is RidgeProfiles: NDCG@10 0.3000 [0.1425, 0.4575] over 134 "
        "users; HybridItems guarded has 0.2100 [" in said(results)
    )
    cold["RidgeProfiles"]["users"] = 12
    assert "over 12 users, too few for firm conclusions; HybridItems" in said(results)
    for variant in results["variants"][:-1]:
        del variant["rankings"]["cold"]
        variant["popularity"] = variant["popularity"][1:]
    assert "cold" not in said(results)


def test_the_verdict_of_a_cold_start_split_says_that_all_is_cold():
    results = fake()
    for variant in results["variants"][:-1]:
        rankings = variant["rankings"]
        variant["rankings"] = {"all": rankings["all"], "mixed": rankings["warm"]}
        variant["popularity"] = [row | {"pairs": 24 * (row["bucket"] == "0")} for row in variant["popularity"]]
    told = said(results)
    assert "All held-out items are cold, that is, without training events." in told
    assert "It is also best in the whole catalogue: NDCG@10 0.0624" in told


def test_an_variant_without_content_can_win():
    results = fake()
    results |= {"variants": results["variants"][4:], "reference": "EASE", "guard": []}
    told = said(results)
    assert told.startswith("SASRec without text is best")
    assert "best variant with content, RidgeProfiles" in told


def bare():
    """The least that a report can be written from."""
    variants = [
        {
            "name": name,
            "content": False,
            "rankings": {"all": {"users": 40, "metrics": {"ndcg@10": estimate(value, 40)}}},
        }
        for name, value in (("EASE", 0.1), ("Popularity", 0.05))
    ]
    return {
        "format": 1, "title": "bare", "created": "2026-11-21", "environment": {}, "protocol": {}, "primary": "ndcg@10",
        "reference": "EASE", "variants": variants, "comparisons": [], "guard": [],
    }  # fmt: skip


def test_absent_optional_parts_leave_their_sections_out(tmp_path):
    html = written(bare(), tmp_path)
    assert "0.1000" in html
    for section in ("Does content help?", "Beyond accuracy", "By age", "Tuning</b>", "Training</b>", "Packages"):
        assert section not in html
    assert "0.0500" in table(bare())


def small():
    """Results of fewer variants: quicker to draw."""
    results = fake()
    results |= {"variants": results["variants"][:3] + results["variants"][-1:], "guard": results["guard"][:1]}
    return results


@pytest.mark.parametrize("how", ["absent", "null"])
def test_optional_parts_of_some_variants_may_be_absent_or_nothing(how, tmp_path):
    results = small()
    optional = ("ages", "curve", "popularity", "beyond", "trials", "seconds", "valid", "weights", "users_per_second")
    for variant, spoilt in zip(results["variants"], (optional[::2], optional[1::2], optional), strict=False):
        for key in spoilt:
            variant.pop(key, None) if how == "absent" else variant.update({key: None})
    results |= {"transferability": []}
    assert "Where the quality comes from" in written(results, tmp_path)
    assert "NDCG@10" in table(results)


def test_figures_that_are_not_numbers_are_dashes(tmp_path):
    results = small()
    nothing = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    results["variants"][0]["rankings"]["cold"]["metrics"]["ndcg@10"] = nothing
    results["variants"][0]["popularity"][0]["ndcg@10"] = nothing
    results["guard"][0]["overall"] |= nothing | {"p": float("nan")}
    results["guard"][0]["test"] = None
    html = written(results, tmp_path)
    assert "–<small>[–, –]</small>" in html
    assert "nan" not in Page(html).text


def test_results_without_one_variant_that_ran_still_make_a_report(tmp_path):
    results = fake()
    results["variants"] = [results["variants"][-1]]
    results |= {"reference": None, "comparisons": [], "guard": []}
    html = written(results, tmp_path)
    assert "No variant finished" in html
    assert "MemoryError" in Page(html).text
    assert "MemoryError" in table(results)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda r: r.update(format=2), "format 2"),
        (lambda r: r.pop("protocol"), "no protocol"),
        (lambda r: r["variants"][2].pop("content"), "'HybridItems without content' has no content"),
        (lambda r: r["variants"][2]["rankings"].pop("all"), "'HybridItems without content' has no ndcg@10"),
        (lambda r: r["variants"][2].update(name="EASE"), "two variants are called 'EASE'"),
        (lambda r: r.update(reference="nobody"), "'nobody' is not a variant"),
    ],
)
def test_results_that_lack_a_required_part_are_refused_with_its_name(spoil, told, tmp_path):
    results = fake()
    spoil(results)
    with pytest.raises(InputError, match=re.escape(told)):
        write_report(results, tmp_path / "report.html")
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match=re.escape(told)):
        table(results)


def test_results_are_left_as_they_were(tmp_path):
    results = small()
    before = copy.deepcopy(results)
    write_report(results, tmp_path / "report.html")
    table(results)
    assert results == before


def test_the_table_for_the_terminal_is_aligned_and_sorted():
    lines = table(fake()).splitlines()
    rule = lines[1]
    ends = [n for n in range(len(rule)) if rule[n : n + 2] in ("- ", "-")]
    rows = lines[2 : 2 + len(VARIANTS) + 1]
    for row in rows:
        for end in ends:
            assert row[end + 1 : end + 3].strip() == "", "every column ends where its rule ends"
    assert [float(row.split("[")[0].split()[-1]) for row in rows] == sorted(
        (a[4] for a in [*VARIANTS, ("", "", 0, "", 0.0618)]), reverse=True
    )
    assert rows[0].startswith("HybridItems guarded")
    assert "ablation" in rows[3]
    assert "MemoryError" in lines[-1]
    assert max(map(len, lines)) <= 141


def test_moments_of_a_cut_are_written_as_dates(tmp_path):
    results = bare()
    results["protocol"]["facts"] = {"valid_from": 1_404_000_000.0, "shares": None, "left_out": {}}
    text = Page(written(results, tmp_path)).text
    assert "2014-06-29 00:00:00 UTC" in text


def test_long_names_that_begin_and_end_alike_are_told_apart_in_plots(tmp_path):
    results = bare()
    names = [f"HybridItems(reg={reg}, history_decay=0.6, neighbours=200)" for reg in (10, 100, 1000)]
    first = results["variants"][0]
    results["variants"] = [{**copy.deepcopy(first), "name": name} for name in names]
    results["reference"] = names[0]
    picture = re.search(r"<svg.*?</svg>", written(results, tmp_path), flags=re.DOTALL)[0]
    lines = re.findall(r">([^<>\n]+)</text>", picture)
    assert lines.count("neighbours=200)") == 3
    for reg in (10, 100, 1000):
        assert f"HybridItems(reg={reg}," in lines
    assert "…" not in picture


def test_no_letter_of_a_label_is_lost_and_none_leaves_the_picture():
    long = "mine=" + "a_rather_long_module_name." * 4 + "Recommender with every setting that it has"
    assert wrapped(long).replace("\n", " ").replace(" ", "") == long.replace(" ", "")
    assert max(map(len, wrapped(long).split("\n"))) <= LABEL
    rows = [Row(long, 0.3, 0.2, 0.4), Row("EASE", 0.25, 0.2, 0.3)]
    picture = forest("wide", [Panel("", rows)], axis="NDCG@10")
    lines = re.findall(r'transform="translate\(([\d.-]+) [^>]*>([^<]+)<', picture)
    assert "".join(text for _, text in lines).replace(" ", "") == long.replace(" ", "")
    assert all(float(x) >= 0 for x, _ in lines)


def test_a_far_off_baseline_is_an_arrow_and_does_not_squeeze_the_others():
    close = [Row(f"model {n}", 0.100 + n / 1000, 0.098 + n / 1000, 0.102 + n / 1000) for n in range(4)]
    far = Row("Popularity", 0.0123, 0.011, 0.013)

    def length_of_intervals(rows):
        picture = forest("plot", [Panel("", rows)], axis="NDCG@10")
        ends = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n" clip-path[^>]*stroke: var\(--plain\)', picture)
        return picture, max(float(b) - float(a) for a, b in ends)

    alone, before = length_of_intervals(close)
    together, after = length_of_intervals([*close, far])
    assert "←" not in alone
    baselines = [Row(f"baseline {n}", 0.04, 0.039, 0.041) for n in range(3)]
    assert forest("plot", [Panel("", [*close[:2], *baselines])], axis="NDCG@10").count("← 0.04<") == 3
    assert "← 0.0123" in together
    assert after > 0.45 * before
    differences = [Row("second", -0.04, -0.06, -0.02), *(Row(name, -0.4, -0.41, -0.39) for name in "abc")]
    assert forest("plot", [Panel("", differences)], axis="minus", zero=True).count("← −0.4<") == 3
    points = [Point(1.0 + n, row) for n, row in enumerate([*close, far])]
    picture = scatter("cloud", points, across="seconds", up="NDCG@10")
    assert "Popularity ↓ 0.0123" in picture
    assert "0.02" not in re.findall(r">([\d.]+)</text>", picture)
