import numpy as np
import pytest
from scipy import sparse

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.numerics.ages import AGE_EDGES
from recotransfer.recommenders import LearnedHybrid
from recotransfer.recommenders._blend import Lists, candidates, learn
from recotransfer.recommenders._item_parts import content_of
from recotransfer.recommenders._lessons import Lessons

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
    return model.blend_.age[part][int(bucket > 0)].max() * model.blend_.popularity[part][bucket]


def test_order_counts_where_items_follow_each_other():
    walk, groups = (LearnedHybrid(neighbours=20).fit(planted(chained=chained)) for chained in (True, False))
    assert weight(walk, "order") / weight(walk, "co-occurrence") > 4 * (
        weight(groups, "order") / weight(groups, "co-occurrence")
    )


def test_noise_counts_less_than_what_tells_items_apart():
    events = planted(chained=False)
    model = LearnedHybrid(neighbours=20).fit(events, vectors(events, "words", "noise"))
    assert model.blend_.lists > 0
    said = {
        name: sum(model.blend_.shares[f"{part} {name}"][0].sum() for part in ("near", "far"))
        for name in ("words", "noise")
    }
    assert said["words"] > 2 * said["noise"]
    assert any("words" in line and "noise" in line for line in model.in_words())


def test_the_guard_keeps_content_that_tells_items_apart_and_says_so():
    events = planted(chained=False)
    model = LearnedHybrid(neighbours=20).fit(events, vectors(events, "words"))
    assert model.verdict_.users > 0
    assert model.verdict_.kept
    assert model.in_words()[-1].startswith("Guard: content counts for items with users")
    assert LearnedHybrid(neighbours=20, guard=False).fit(events, vectors(events, "words")).verdict_.users == 0


def test_content_that_is_dropped_still_ranks_new_items(monkeypatch):
    level = iter((0.0, 100.0))  # first with content, then without
    monkeypatch.setattr(Lessons, "_judged", lambda self, lists: np.arange(100.0) + next(level))
    events, content = planted(chained=False), vectors(planted(chained=False), "words")
    known = events.select(np.flatnonzero(events.item != 0))
    model = LearnedHybrid(neighbours=20).fit(known, content)
    assert not model.verdict_.kept
    for part in ("near words", "far words"):
        np.testing.assert_array_equal(model.blend_.popularity[part] > 0, [True, False, False, False])

    found = model.recommend(["u0"], ITEMS, exclude_seen=False)
    assert found.scores[0][found.positions[0] == 0] > 0


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
    guess = chosen ^ (rng.random((200, 1)) < 0.3)  # of three lists in ten, all but the right one
    features = np.zeros((chosen.size, 2 * len(AGE_EDGES)), np.float32)
    features[:, 0], features[:, len(AGE_EDGES)] = 0.5 * guess.ravel(), rng.random(chosen.size)

    blank = np.zeros(chosen.shape, np.float32)
    lists = Lists(
        sparse.csr_array(features),
        chosen,
        np.ones_like(chosen),
        blank,
        np.full(chosen.shape, 2),
        np.zeros((*chosen.shape, 2), np.float32),
    )
    found = learn([lists], {name: name for name in ("co-occurrence", "order")})
    weights = {name: found.age[name][1, 0] * found.popularity[name][2] for name in found.age}
    assert weights["co-occurrence"] > 5 * weights["order"]


def test_candidates_stand_for_the_whole_catalogue():
    answers, seen = (sparse.csr_array(np.eye(100)[[row]]) for row in (3, 4))
    shortlist = np.array([[5, 6, 3, 4, -1]])
    items, chosen, log_weight = candidates(answers, seen, shortlist, np.arange(100), 12, np.random.default_rng(0))
    assert items[0, 0] == 3
    assert chosen[0].sum() == 1
    assert 4 not in items
    assert {5, 6} <= set(items[0].tolist())
    assert np.exp(log_weight[0]).sum() == pytest.approx(99)


def test_without_times_all_items_of_a_history_count_alike():
    log = planted(chained=True)
    untimed = Interactions(log.users, log.items, log.user, log.item, log.weight)
    model = LearnedHybrid(neighbours=20).fit(untimed)
    assert set(model.blend_.age) == {"co-occurrence"}
    assert "The log has no times: all items of a history count alike." in model.in_words()
    shuffled = np.random.default_rng(0).permutation(len(log.user))
    other = Interactions(log.users, log.items, log.user[shuffled], log.item[shuffled], log.weight)
    lists = [model.recommend(k=5, histories=each).positions for each in (untimed, other)]
    np.testing.assert_array_equal(*lists)


def test_words_say_how_far_back_a_history_counts():
    walk, groups = (LearnedHybrid(neighbours=20).fit(planted(chained=chained)).in_words() for chained in (True, False))
    assert any(line.startswith("Order matters much") for line in walk)
    assert any("of a history hold" in line for line in walk)
    assert not any(line.startswith("Order matters much") for line in groups)


def test_each_turn_counts_other_items_as_new_and_keeps_them_out_of_behaviour_and_histories():
    events = planted(chained=False)
    content = content_of(vectors(events, "words"), 20)
    lessons = Lessons(events, content, 20, by_moment=False, seed=0)
    new = [asked[0].new for asked in lessons._samples]
    assert np.stack(new).sum(axis=0).max() == 1
    assert {int(turn.sum()) for turn in new} == {ITEMS // 10}

    for turn, (known, fresh) in zip(new, lessons._samples, strict=True):
        view = lessons._as_if(lessons._whole, turn)
        assert not view.users[turn].any()
        for name in ("co-occurrence", "order", "wide order"):
            assert not view.matrices[name][:, turn].nnz
            assert lessons._whole.matrices[name][:, turn].nnz

        # What they borrow comes from known items, as for items that are really new.
        lent = view.matrices["borrowed co-occurrence"][:, turn]
        known_columns = view.matrices["co-occurrence"][:, ~turn]
        assert lent.nnz
        assert set(lent.nonzero()[0]) <= set(known_columns.nonzero()[0])

        assert not any(matrix[:, turn].nnz for sample in (known, fresh) for matrix in sample.aged)
        assert turn[fresh.items[fresh.items >= 0]].all()
        assert not turn[known.items[known.items >= 0]].all()

    assert not set(lessons.first.item) & set(lessons.cold)
    assert set(lessons.cold_answers.item) == set(lessons.cold)


def trended(*, rising):
    """Users mostly take one of ten hits; with `rising`, their later events are with ten other hits than the first."""
    rng = np.random.default_rng(0)
    hits = rng.integers(10, size=(USERS, STEPS)) + 10 * (rising * (np.arange(STEPS) > 5))
    item = np.where(rng.random(hits.shape) < 0.7, hits, rng.integers(ITEMS, size=hits.shape)).ravel()
    day = np.tile(3.0 * np.arange(STEPS), USERS) + rng.random(USERS * STEPS)
    ids = [IdMap([f"{letter}{i}" for i in range(n)]) for letter, n in (("u", USERS), ("i", ITEMS))]
    return Interactions(*ids, np.repeat(np.arange(USERS), STEPS), item, np.ones(len(item), np.float32), 86400 * day)


def test_a_trend_counts_and_is_told():
    late = []
    for rising in (True, False):
        model = LearnedHybrid(neighbours=20).fit(trended(rising=rising))
        late.append(model.blend_.appeal[1] / sum(model.blend_.appeal))
        said = [line for line in model.in_words() if "last tenth of the log" in line]
        assert f"{late[-1]:.0%} is on" in said[0]

    assert late[0] > 1.5 * late[1]
