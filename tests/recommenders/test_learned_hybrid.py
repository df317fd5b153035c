import numpy as np
import pytest

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.numerics.ages import AGE_EDGES
from recotransfer.recommenders import LearnedHybrid
from recotransfer.recommenders._blend import Lists, candidates, learn

USERS, ITEMS, GROUPS, STEPS = 300, 60, 6, 10


def planted(*, chained):
    """A log in which users keep to the items of one group, or with `chained` go from each item to the next one."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(USERS), STEPS)
    if chained:
        items = np.concatenate([(rng.integers(ITEMS) + np.arange(STEPS)) % ITEMS for _ in range(USERS)])
    else:
        size = ITEMS // GROUPS
        items = np.concatenate([rng.permutation(size) + size * (user % GROUPS) for user in range(USERS)])

    ids = [IdMap([f"{letter}{i}" for i in range(n)]) for letter, n in (("u", USERS), ("i", ITEMS))]
    # A fifth of the events are strays, so that no weights explain everything.
    stray = rng.random(len(items)) < 0.2
    items = np.where(stray, rng.integers(ITEMS, size=len(items)), items)
    time = np.tile(np.arange(STEPS, dtype=float), USERS)
    return Interactions(ids[0], ids[1], users, items, np.ones(len(users), np.float32), time)


def vectors(events, *modalities):
    """One block of unit vectors per modality, which tells the groups of `planted` apart, or is noise."""
    rng = np.random.default_rng(1)
    blocks = []
    for modality in modalities:
        rows = rng.normal(size=(ITEMS, 8)) * (1.0 if modality == "noise" else 0.1)
        if modality != "noise":
            rows[np.arange(ITEMS), np.arange(ITEMS) // (ITEMS // GROUPS)] += 1

        blocks.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    return Embeddings(
        events.items, np.concatenate(blocks, axis=1).astype(np.float32), blocks=tuple((name, 8) for name in modalities)
    )


def weight(model, part, bucket=3):
    """The largest weight that the part has at any age, for items of more than 20 users, or `bucket`."""
    return model.blend_.age[part].max() * model.blend_.popularity[part][bucket]


def test_order_counts_where_items_follow_each_other():
    walk, groups = (LearnedHybrid(neighbours=20).fit(planted(chained=chained)) for chained in (True, False))
    assert weight(walk, "order") / weight(walk, "co-occurrence") > 4 * (
        weight(groups, "order") / weight(groups, "co-occurrence")
    )


def test_noise_counts_less_than_what_tells_items_apart():
    events = planted(chained=False)
    model = LearnedHybrid(neighbours=20).fit(events, vectors(events, "words", "noise"))
    assert model.blend_.lists > 0
    for part in ("near", "far"):
        assert weight(model, f"{part} words", 0) > 1.2 * weight(model, f"{part} noise", 0)


def test_new_items_are_ranked_by_what_they_look_like():
    events = planted(chained=False)
    content = vectors(events, "words")
    model = LearnedHybrid(neighbours=20).fit(events, content)
    new = Embeddings(IdMap(["new"]), content.vectors[:1], blocks=content.blocks)
    bigger = model.extend(new)
    at = bigger.catalogue_.positions(["new"])[0]
    users = [f"u{i}" for i in range(GROUPS)]
    found = bigger.recommend(users, ITEMS, exclude_seen=False)
    scores = np.where(found.positions == at, found.scores, -np.inf).max(axis=1)
    assert users[scores.argmax()] == "u0"
    assert len(model.catalogue_) == ITEMS


def test_a_loaded_model_extends_as_the_saved_one(tmp_path):
    events = planted(chained=False)
    content = vectors(events, "words", "noise")
    model = LearnedHybrid(neighbours=20).fit(events, content)
    model.save(tmp_path / "m")
    new = Embeddings(IdMap(["new"]), content.vectors[:1], blocks=content.blocks)
    lists = [each.extend(new).recommend(k=8) for each in (model, LearnedHybrid.load(tmp_path / "m"))]
    np.testing.assert_array_equal(lists[0].positions, lists[1].positions)
    np.testing.assert_array_equal(lists[0].scores, lists[1].scores)


def test_without_content_new_items_are_refused():
    model = LearnedHybrid(neighbours=20).fit(planted(chained=False))
    with pytest.raises(InputError, match="fitted without embeddings"):
        model.extend(Embeddings(IdMap(["new"]), np.ones((1, 3), np.float32)))


def test_reasons_name_each_item_of_the_history_once():
    events = planted(chained=False)
    found = LearnedHybrid(neighbours=20).fit(events, vectors(events, "words")).recommend(["u0"], 5, reason=True)
    for reason in found.reason[0]:
        names = [item for item, _ in reason.because]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("users", [1, 2, 5])
def test_tiny_logs_fall_back_on_the_prior(users):
    events = planted(chained=False)
    model = LearnedHybrid().fit(events.select(np.flatnonzero((events.user < users) & (events.time < 2))))
    assert model.blend_.lists == 0
    assert (model.recommend(k=3).positions >= 0).all()


def test_learned_weights_follow_the_part_that_is_right():
    rng = np.random.default_rng(0)
    chosen = np.zeros((200, 20), bool)
    chosen[np.arange(200), rng.integers(20, size=200)] = True
    features = {}
    guess = chosen ^ (rng.random((200, 1)) < 0.3)  # of three lists in ten, all but the right one
    for name, right in (("co-occurrence", 0.5 * guess), ("order", rng.random(chosen.shape))):
        features[name] = np.zeros((len(AGE_EDGES), chosen.size), np.float32)
        features[name][0] = right.ravel()

    blank = np.zeros(chosen.shape, np.float32)
    lists = Lists(features, chosen, np.ones_like(chosen), blank, np.full(chosen.shape, 2), blank)
    found = learn([lists], {name: name for name in features})
    weights = {name: found.age[name][0] * found.popularity[name][2] for name in features}
    assert weights["co-occurrence"] > 5 * weights["order"]


def test_candidates_stand_for_the_whole_catalogue():
    from scipy import sparse

    answers, seen = (sparse.csr_array(np.eye(100)[[row]]) for row in (3, 4))
    shortlist = np.array([[5, 6, 3, 4, -1]])
    items, chosen, log_weight = candidates(answers, seen, shortlist, np.arange(100), 12, np.random.default_rng(0))
    assert items[0, 0] == 3
    assert chosen[0].sum() == 1
    assert 4 not in items
    assert {5, 6} <= set(items[0].tolist())
    assert np.exp(log_weight[0]).sum() == pytest.approx(99)
