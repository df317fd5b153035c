"""The sample shop is what its README says: whole, repeatable, and with tastes to be found in it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parent.parent / "sample_data"
COMPLEMENTS = {"Tents": "Sleeping bags", "Mugs": "Plates", "Dresses": "Hats", "Backpacks": "Water bottles"}


@pytest.fixture(scope="module")
def items():
    return pd.read_csv(FOLDER / "items.csv")


@pytest.fixture(scope="module")
def events():
    return pd.read_csv(FOLDER / "events.csv", parse_dates=["timestamp"])


@pytest.fixture(scope="module")
def views(items, events):
    """Views with their categories, by user and then time."""
    seen = events[events["event"] == "view"].merge(items[["item_id", "category"]], on="item_id")
    return seen.sort_values(["user_id", "timestamp"], kind="stable", ignore_index=True)


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    pytest.importorskip("PIL")
    out = tmp_path_factory.mktemp("sample")
    script = FOLDER / "make_sample_data.py"
    subprocess.run([sys.executable, "-B", str(script), "--out", str(out)], check=True, capture_output=True)
    return out


def test_items_are_600_with_the_columns_and_gaps_that_the_readme_names(items):
    columns = ["item_id", "title", "description", "brand", "category", "price", "in_stock", "image", "added"]
    assert list(items.columns) == columns
    assert items["item_id"].tolist() == [f"P{n:04d}" for n in range(1, 601)]
    assert items["title"].is_unique
    assert items["category"].nunique() == 16
    gaps = items.isna().sum()
    assert gaps[gaps > 0].to_dict() == {"price": 9, "image": 8}
    assert items["in_stock"].dtype == bool


def test_every_price_has_two_decimals():
    prices = pd.read_csv(FOLDER / "items.csv", dtype=str)["price"].dropna()
    assert prices.str.fullmatch(r"\d+\.\d{2}").all()


def test_events_have_the_stated_counts_and_are_in_order_of_time(events):
    assert list(events.columns) == ["user_id", "item_id", "event", "timestamp", "query"]
    assert 25_000 <= len(events) <= 35_000
    assert events["timestamp"].is_monotonic_increasing
    assert events["timestamp"].min() >= pd.Timestamp("2025-03-01", tz="UTC")
    assert events["timestamp"].max() < pd.Timestamp("2025-09-01", tz="UTC")
    per_user = events["user_id"].value_counts()
    assert len(per_user) == 1500
    assert (per_user <= 3).sum() == 100


def test_events_name_known_products_that_were_already_on_sale(items, events):
    assert set(events["item_id"]) <= set(items["item_id"])
    added = pd.to_datetime(items.set_index("item_id")["added"], utc=True)
    assert (events["timestamp"] >= events["item_id"].map(added)).all()


def test_forty_products_of_the_last_week_have_no_event(items, events):
    cold = items[~items["item_id"].isin(events["item_id"])]
    assert len(cold) == 40
    assert (cold["added"] >= "2025-08-25").all()
    assert cold["category"].value_counts().between(2, 3).all()
    assert cold["category"].nunique() == 16


def test_only_searches_carry_a_query(events):
    assert (events["query"].notna() == (events["event"] == "search")).all()
    assert events["query"].dropna().str.split().str.len().max() <= 12


def test_carts_follow_views_and_purchases_follow_carts(events):
    first = events.pivot_table(index=["user_id", "item_id"], columns="event", values="timestamp", aggfunc="min")
    carted, bought = first.dropna(subset=["cart"]), first.dropna(subset=["purchase"])
    assert (carted["view"] < carted["cart"]).all()
    assert (bought["cart"] < bought["purchase"]).all()
    counts = events["event"].value_counts()
    assert counts["view"] > 4 * counts["cart"] > 6 * counts["purchase"] > 0


def test_pictures_open_and_are_64_by_64(items):
    image = pytest.importorskip("PIL.Image")
    named = items["image"].dropna()
    assert {f"images/{p.name}" for p in (FOLDER / "images").iterdir()} == set(named)
    for name in named:
        with image.open(FOLDER / name) as picture:
            assert picture.format == "PNG"
            assert picture.size == (64, 64)


def test_the_folder_stays_small():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 3_000_000


@pytest.mark.parametrize("name", ["items.csv", "events.csv"])
def test_the_same_seed_gives_the_same_bytes(remade, name):
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (remade, FOLDER)]
    assert digests[0] == digests[1]


def test_the_same_seed_gives_the_same_pictures(remade, items):
    image = pytest.importorskip("PIL.Image")
    for name in items["image"].dropna():
        with image.open(remade / name) as one, image.open(FOLDER / name) as other:
            difference = np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float))
        # Releases of Pillow may round a colour or an edge differently; another product would be far off.
        assert difference.mean() < 2, name


def test_users_come_back_to_their_categories(views):
    """The chance that two views of one user share a category, against two views of anyone."""
    chance = (views["category"].value_counts(normalize=True) ** 2).sum()
    counts = pd.crosstab(views["user_id"], views["category"]).to_numpy()
    total = counts.sum(axis=1, keepdims=True)
    many = total[:, 0] >= 5
    own = ((counts * (counts - 1)).sum(axis=1, keepdims=True) / (total * np.maximum(total - 1, 1)))[many].mean()
    assert own > 3 * chance


def test_liking_leads_on_to_complements_and_not_back(views):
    after = views.shift(-1)
    gap = (after["timestamp"] - views["timestamp"]).dt.total_seconds()
    same_visit = (after["user_id"] == views["user_id"]) & (gap < 600)
    steps = pd.crosstab(views["category"][same_visit], after["category"][same_visit])
    for here, there in COMPLEMENTS.items():
        assert steps.loc[here, there] > 3 * steps.loc[there, here], (here, there)


def test_a_few_products_draw_much_of_the_attention(views):
    counts = views["item_id"].value_counts()
    assert counts.iloc[:56].sum() > 0.25 * len(views)


def test_neighbours_find_the_last_view_more_often_than_popularity_does(views):
    """Plain item-to-item cosine on everything but each user's last product, by hits among ten."""
    pairs = views.drop_duplicates(["user_id", "item_id"], keep="last")
    user, item = pd.factorize(pairs["user_id"])[0], pd.factorize(pairs["item_id"])[0]
    last = ~pairs.duplicated("user_id", keep="last").to_numpy()
    seen = np.zeros((user.max() + 1, item.max() + 1))
    seen[user[~last], item[~last]] = 1
    popularity = seen.sum(axis=0)
    likeness = seen.T @ seen / np.sqrt(np.outer(popularity, popularity) + 1)
    np.fill_diagonal(likeness, 0)
    users, wanted = user[last], item[last]

    def hits(scores):
        scores = np.where(seen[users] > 0, -np.inf, scores)
        mine = scores[np.arange(len(users)), wanted]
        return ((scores > mine[:, None]).sum(axis=1) < 10).mean()

    assert hits(seen[users] @ likeness) > 1.5 * hits(np.broadcast_to(popularity, (len(users), len(popularity))))


def test_the_readme_states_the_counts_that_the_files_have(events):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{len(events):,} events of {events['user_id'].nunique():,} users" in text
    for kind, count in events["event"].value_counts().items():
        assert f"`{kind}` ({count:,})" in text
