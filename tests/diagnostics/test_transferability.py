import numpy as np
import pytest
from scipy import optimize, stats

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.diagnostics import coral_distance, h_score, logme, mmd, neighbour_agreement, proxy_a_distance
from recotransfer.errors import InputError


def classes(n=80, dim=6, kinds=3, spread=1.0, seed=0):
    """Vectors around class centres, with their classes."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(kinds, size=n)
    return 3 * draw.normal(size=(kinds, dim))[labels] + spread * draw.normal(size=(n, dim)), labels


def evidence(features, target, alpha, beta):
    """log p(y | F) / n from the definition: y is normal with covariance F F' / alpha + I / beta."""
    covariance = features @ features.T / alpha + np.eye(len(features)) / beta
    return stats.multivariate_normal(np.zeros(len(features)), covariance).logpdf(target) / len(features)


@pytest.mark.parametrize("dim", [3, 60], ids=["tall", "wide"])
def test_logme_is_the_greatest_evidence_that_optimisation_finds(dim):
    features, labels = classes(n=40, dim=dim, spread=4.0)
    best = []
    for kind in range(3):
        target = (labels == kind).astype(float)
        found = optimize.minimize(
            lambda x, y=target: -evidence(features, y, *np.exp(x)), [0.0, 0.0], method="Nelder-Mead", tol=1e-7
        )
        best.append(-found.fun)
    assert logme(features, labels) == pytest.approx(np.mean(best), abs=2e-4)


def test_logme_takes_a_matrix_of_targets_and_one_hot_columns_are_the_classes():
    features, labels = classes()
    hot = np.eye(3)[labels]
    assert logme(features, hot) == pytest.approx(logme(features, labels))
    named = np.array(["rose", "oak", "fern"])[labels]
    assert logme(features, named) == pytest.approx(logme(features, labels))


def test_logme_and_h_score_order_features_by_how_well_they_tell_classes_apart():
    for score in (logme, h_score):
        found = [score(*classes(spread=spread)) for spread in (1.0, 4.0, 16.0)]
        found.append(score(np.random.default_rng(5).normal(size=(80, 6)), classes()[1]))
        assert found == sorted(found, reverse=True), score.__name__


def test_h_score_is_the_trace_formula_with_the_shrunk_covariance():
    from sklearn.covariance import LedoitWolf

    features, labels = classes()
    fitted = LedoitWolf().fit(features)
    means = np.stack([features[labels == kind].mean(axis=0) for kind in range(3)])[labels]
    between = np.cov(means, rowvar=False, bias=True)
    expected = (1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ between)
    assert h_score(features, labels) == pytest.approx(expected)


def test_h_score_is_not_fooled_by_more_dimensions_than_items():
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=60)
    assert h_score(draw.normal(size=(60, 300)), labels) < 0.5 * h_score(*classes(n=60))


def shop(items=200, users=400, groups=10, seed=0):
    """A log in which the items of a group go together, popular ones more often, and the groups."""
    draw = np.random.default_rng(seed)
    group = np.arange(items) % groups
    appeal = draw.pareto(1.5, size=items) + 0.3
    rows = []
    for user in range(users):
        pool = np.flatnonzero(group == draw.integers(groups))
        taken = draw.choice(pool, size=6, replace=False, p=appeal[pool] / appeal[pool].sum())
        rows += [(user, item) for item in [*taken, draw.integers(items)]]
    user, item = np.array(rows).T
    return Interactions(IdMap(range(users)), IdMap(range(items)), user, item, np.ones(len(user), np.float32)), group


def test_neighbour_agreement_tells_good_vectors_from_noise_and_from_mere_popularity():
    log, group = shop()
    draw = np.random.default_rng(1)
    popularity = np.bincount(log.item, minlength=200)
    noise = draw.normal(size=(200, 10))
    vectors = {
        "right": np.eye(10)[group] + 0.1 * noise,
        "blurred": np.eye(10)[group] + 0.7 * noise,
        "noise": noise,
        "popularity": np.stack([np.cos(angle := popularity / 40), np.sin(angle)], axis=1),
    }
    found = {name: neighbour_agreement(Embeddings(log.items, v.astype(np.float32)), log) for name, v in vectors.items()}
    assert found["right"] > 1.5 * found["blurred"] > 2
    assert found["noise"] == pytest.approx(1, abs=0.25)
    assert found["popularity"] == pytest.approx(1, abs=0.35)


def test_events_of_weight_0_or_less_bring_no_items_together():
    log, group = shop(items=40, users=60, groups=4)
    vectors = Embeddings(log.items, np.eye(4, dtype=np.float32)[group])
    draw = np.random.default_rng(4)
    user, item = draw.integers(60, size=200), draw.integers(40, size=200)
    new = log.matrix()[user, item] == 0
    weight = np.r_[log.weight, np.zeros(new.sum() - 10), -np.ones(10)].astype(np.float32)
    both = Interactions(log.users, log.items, np.r_[log.user, user[new]], np.r_[log.item, item[new]], weight)
    assert neighbour_agreement(vectors, both) == pytest.approx(neighbour_agreement(vectors, log))


def test_neighbour_agreement_is_the_ratio_of_its_definition():
    log, group = shop(items=40, users=60, groups=4)
    vectors = (np.eye(4)[group] + 0.5 * np.random.default_rng(3).normal(size=(40, 4))).astype(np.float32)
    held = (log.matrix().toarray() > 0).astype(float)
    count = held.sum(axis=0)
    together = held.T @ held / np.sqrt(np.outer(count, count))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -9)
    alike = np.floor(4 * np.log2(count))
    seen = expected = 0.0
    for item in range(40):
        for other in np.argsort(-near[item])[:5]:
            pool = [j for j in range(40) if j != item and alike[j] == alike[other]]
            seen += together[item, other]
            expected += together[item, pool].mean()
    found = neighbour_agreement(Embeddings(log.items, vectors), log, neighbours=5)
    assert found == pytest.approx(seen / expected, rel=1e-4)


def test_neighbour_agreement_leaves_out_items_without_content_or_events():
    log, group = shop()
    vectors = (np.eye(10)[group] + 0.1).astype(np.float32)
    present = np.arange(200) % 3 > 0
    more = IdMap([*range(200), "late"])
    some = Embeddings(more, np.vstack([vectors, vectors[:1]]), present=np.append(present, True))
    kept = np.flatnonzero(present)
    rows = present[log.item]
    bare = Embeddings(IdMap(kept), vectors[kept])
    assert neighbour_agreement(some, log) == pytest.approx(
        neighbour_agreement(bare, log.select(rows).with_items(bare.ids)), rel=0.02
    )
    with pytest.raises(InputError, match="items with both content and events: 3"):
        neighbour_agreement(Embeddings(log.items, vectors, present=np.arange(200) < 3), log)
    with pytest.raises(InputError, match="neighbours must be at least 1, got 0"):
        neighbour_agreement(bare, log, neighbours=0)


def domains(shift=0.0, stretch=1.0, n=300, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, 5)), stretch * draw.normal(size=(n + 50, 5)) + shift


def test_mmd_is_the_unbiased_estimate_of_its_definition():
    source, target = domains(0.3, n=20)
    pooled = np.concatenate([source, target])
    apart = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=-1)
    width = np.median(apart[np.triu_indices(len(pooled), 1)])
    kernel = np.exp(-apart / (2 * width))
    n, m = len(source), len(target)
    within = (kernel[:n, :n].sum() - n) / (n * (n - 1)) + (kernel[n:, n:].sum() - m) / (m * (m - 1))
    assert mmd(source, target) == pytest.approx(within - 2 * kernel[:n, n:].mean())


def test_mmd_is_about_nothing_for_equal_domains_and_grows_with_the_shift():
    equal = [mmd(*domains(seed=rng)) for rng in range(30)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / np.sqrt(30)
    assert min(equal) < 0, "the unbiased estimate falls below 0 at times"
    assert max(equal) < mmd(*domains(0.5)) < mmd(*domains(1.0)) < mmd(*domains(2.0))
    assert mmd(*domains(stretch=2.0)) > max(equal)


def test_coral_distance_is_the_formula_and_sees_no_shift():
    source, target = domains(stretch=2.0)
    apart = np.cov(source.T) - np.cov(target.T)
    assert coral_distance(source, target) == pytest.approx(np.linalg.norm(apart) ** 2 / 100)
    assert coral_distance(source, source + 7) == pytest.approx(0, abs=1e-12)
    assert coral_distance(source[:, :1], target[:, :1]) > 0


def test_proxy_a_distance_runs_from_one_domain_to_two_strangers():
    assert proxy_a_distance(*domains()) < 0.35
    assert 0.5 < proxy_a_distance(*domains(0.7)) < proxy_a_distance(*domains(2.0)) <= 2
    assert proxy_a_distance(*domains(20.0)) == pytest.approx(2)


def test_great_domains_are_drawn_from_with_a_seed(monkeypatch):
    from recotransfer.diagnostics import transferability

    source, target = domains(0.7, n=300)
    whole = mmd(source, target), proxy_a_distance(source, target)
    monkeypatch.setattr(transferability, "_MOST_COMPARED", 150)
    monkeypatch.setattr(transferability, "_MOST_LEARNED", 150)
    part = mmd(source, target, seed=1), proxy_a_distance(source, target, seed=1)
    assert part == (mmd(source, target, seed=1), proxy_a_distance(source, target, seed=1))
    assert part != whole
    assert part == pytest.approx(whole, rel=0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mmd(np.zeros((5, 3)), np.zeros((5, 2))), "source has 3 dimensions and target 2"),
        (lambda: coral_distance(np.zeros((1, 3)), np.zeros((5, 3))), "n at least 2"),
        (lambda: logme(np.full((4, 2), np.nan), [0, 1, 0, 1]), "must be finite"),
        (lambda: h_score(np.zeros((4, 2)), [0, 1, 0]), r"labels have shape \(3,\), expected \(4,\)"),
        (lambda: logme(np.zeros((4, 2)), np.zeros((3, 2))), r"targets have shape \(3, 2\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_features_without_spread_score_without_a_warning():
    labels = np.arange(20) % 2
    assert h_score(np.ones((20, 3)), labels) == 0
    assert np.isfinite(logme(np.zeros((20, 3)), labels))
    assert mmd(np.ones((9, 3)), np.ones((8, 3))) == pytest.approx(0)
