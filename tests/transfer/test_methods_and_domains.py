"""Every transfer method in every domain: a cell that is tested here, or the reason why it is none.

The table is that of ARCHITECTURE.md. Data are planted: what an item is about shows in its content, and decides who
holds it. A method must leave or make the answer easy to find through the same `TransferTask` in every domain.
"""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from tiny import sentence_model

from recotransfer import ContentProfiles, HybridItems, Probe, TransferTask, WeightedFusion
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.diagnostics import guard, mmd
from recotransfer.encoders import KmerSequence, PretrainedImage, SentenceText
from recotransfer.experiments import Problem, described, few_shot, gain, run, split_items
from recotransfer.transfer import (
    Adversarial,
    ContrastiveHead,
    Coral,
    Distil,
    DistilStatic,
    FineTune,
    ImageNoise,
    LearnedMetric,
    MMDMap,
    MultiTask,
    Replay,
    RidgeMap,
    SoftThreshold,
    TextNoise,
    Whitening,
    augmented,
    map_labels,
    pseudo_labels,
)

KINDS = {"fruit": "apple pear plum grape", "tool": "hammer saw drill wrench", "game": "chess cards dice ball"}
DOMAINS = ("recommender", "vision", "language", "medical")
QUICK = {"epochs": 3, "batch_size": 32}
TRANSFERS = {
    "whitening": Whitening(dim=8),
    "ridge map": RidgeMap(dim=8),
    "learned metric": LearnedMetric(dim=8),
    "contrastive head": ContrastiveHead(hidden=16, learning_rate=0.003, **QUICK),
    "soft threshold": None,
    "multi-task": MultiTask(hidden=16, learning_rate=0.003, **QUICK),
}
PATIENT = {"learning_rate": 0.003, "epochs": 20, "patience": 20, "batch_size": 32}
ADAPTATIONS = {
    "CORAL": Coral(reg=1.0),
    "MMD": MMDMap(**PATIENT),
    "adversarial": Adversarial(weight=10.0, **PATIENT),
}
ALL = dict.fromkeys(DOMAINS)
NO_TOWER = "needs an encoder with one space for names and pictures"
NO_NAMES = "a sequence shares no words with the name of its class"
FEW_LABELS = "it resamples users, and labels are too few for that: the gain over an ablation resamples items"
NO_WEIGHTS = "k-mer counts have no weights to tune; medical pictures are tuned as in vision"
MATRIX = {
    **dict.fromkeys([*TRANSFERS, *ADAPTATIONS], ALL),
    "fine-tuning": {**ALL, "medical": NO_WEIGHTS},
    "distillation": {**ALL, "medical": NO_WEIGHTS},
    "static encoder": {**ALL, "vision": "static encoders read text only", "medical": "static encoders read text only"},
    "zero-shot": {**ALL, "vision": NO_TOWER, "medical": NO_NAMES},
    "few-shot": ALL,
    "augmentation": {**ALL, "medical": "changing one letter may change what a sequence does"},
    "pseudo-labels": ALL,
    "label mapping": ALL,
    "partial fit": ALL,
    "replay": ALL,
    "model fusion": ALL,
    "gain over an ablation": ALL,
    "guard": {**dict.fromkeys(DOMAINS, FEW_LABELS), "recommender": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny sentence model and a tiny vision model, both with random weights."""
    torch = pytest.importorskip("torch")
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    root = tmp_path_factory.mktemp("models")
    words = sorted({w for text in KINDS.values() for w in text.split()} | set(KINDS) | {f"no{n}" for n in range(20)})
    sentence_model(root, words, width=16).rename(root / "text")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(**small, image_size=16, patch_size=8), add_pooling_layer=False)
    vit.save_pretrained(root / "image")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(root / "image")
    return root


@pytest.fixture(scope="module")
def problem_of(models):
    """Domain -> its problem: 150 items of three kinds, in train, validation and test."""
    return {domain: problem(domain, models) for domain in DOMAINS}


def problem(domain, models, n=150):
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=n)
    names = list(KINDS)
    if domain == "vision":
        pictures = rng.integers(0, 120, (n, 16, 16, 3)).astype(np.uint8)
        pictures[np.arange(n), :, :, kind] += 120
        frame, encoder = pd.DataFrame({"image": list(pictures)}), PretrainedImage(model=models / "image")
    elif domain == "medical":
        motif = np.array(["ACGTAC", "TTTAAA", "GGCCGG"])[kind]
        rest = ["".join(rng.choice(list("ACGT"), 20)) for _ in range(n)]
        frame = pd.DataFrame({"sequence": [r[:10] + m + r[10:] for r, m in zip(rest, motif, strict=True)]})
        encoder = KmerSequence(k=(3,), placed=(), dim=64)
    else:
        pool = [text.split() for text in KINDS.values()]
        words = [" ".join([*rng.choice(pool[k], 3), f"no{rng.integers(20)}"]) for k in kind]
        frame, encoder = pd.DataFrame({"title": words}), SentenceText(model=models / "text")
    items = Items(IdMap([f"x{i}" for i in range(n)]), frame)
    if domain == "recommender":  # four shoppers like each kind, each takes a part of it
        pairs = [(f"{names[k]} lover {s}", f"x{i}") for i, k in enumerate(kind) for s in rng.choice(4, 2, False)]
        relations = Interactions.from_frame(pd.DataFrame(pairs, columns=["user", "item"]), items=items.ids)
    else:
        relations = Interactions.from_labels([names[k] for k in kind], items.ids)
    part = rng.choice(["train", "valid", "test"], n, p=[0.6, 0.15, 0.25])
    return Problem(domain, items, split_items(relations, part), {"accuracy": right_kind}, encoders=[encoder])


def right_kind(a):
    """Share of items whose best label, or shopper, is of their kind."""
    said = [str(name).split()[0] for name in a.best]
    true = [str(a.candidates.ids[row.argmax()]).split()[0] for row in a.truth]
    return float(np.mean([x == y for x, y in zip(said, true, strict=True)]))


def head(domain):
    return Probe(reg=1.0) if domain != "recommender" else HybridItems(reg=1.0)


def reached(problem, task, **settings):
    outcome = run(problem, task, settings=[{}], draws=20, **settings)
    assert np.isfinite(outcome.predictions.scores).any()
    return outcome.metrics["accuracy"].value


def cells(*methods):
    return [(m, d) for m in methods for d in DOMAINS if MATRIX[m][d] is None]


def with_vectors(problem, change):
    """The problem with its encoder's vectors in the encoder's place: centred, of mean length 1, changed by `change`."""
    (part,) = TransferTask(encoders=problem.encoders, progress=False).encode(problem.items)
    vectors = part.vectors - part.vectors.mean(axis=0)
    vectors = change(vectors / np.linalg.norm(vectors, axis=1).mean(), np.random.default_rng(2))
    return replace(problem, encoders=None, embeddings=[Embeddings(part.ids, vectors.astype(np.float32))])


def buried(vectors, rng, strength=3):
    """Three directions that tell nothing weigh more than all others together."""
    turn = np.linalg.qr(rng.normal(size=(vectors.shape[1], 3)))[0]
    return vectors + strength * rng.normal(size=(len(vectors), 3)) @ turn.T


@pytest.fixture(scope="module")
def buried_of(problem_of):
    """Domain -> its problem where most of the vectors tells nothing; relations are of two kinds."""
    out = {}
    for domain, real in problem_of.items():
        split = replace(real.split, **{part: two_kinds(getattr(real.split, part)) for part in ("train", "valid")})
        out[domain] = with_vectors(replace(real, split=split), buried)
    return out


def two_kinds(events):
    kind = np.arange(len(events)) % 2
    return Interactions(events.users, events.items, events.user, events.item, events.weight, None, kind, ("a", "b"))


@pytest.fixture(scope="module")
def unmapped(buried_of):
    """Domain -> accuracy without any transfer."""
    return {domain: reached(real, TransferTask(ContentProfiles())) for domain, real in buried_of.items()}


@pytest.mark.parametrize(("method", "domain"), cells(*TRANSFERS))
def test_maps_find_what_is_buried(method, domain, buried_of, unmapped):
    real, transfer = buried_of[domain], TRANSFERS[method]
    if method == "soft threshold":  # a map of another year's relations is the source
        other = run(real, TransferTask(ContentProfiles(), transfers=[RidgeMap(dim=8)]), settings=[{}], draws=2)
        transfer = SoftThreshold(source=other.task.transfers[0], threshold=0.1)
    outcome = run(real, TransferTask(ContentProfiles(), transfers=[transfer]), settings=[{}], draws=2)
    assert outcome.metrics["accuracy"].value > unmapped[domain] + 0.1
    if method == "multi-task":
        assert set(outcome.task.transfers[0].report_["weights"]) == {"a", "b"}


@pytest.fixture(scope="module")
def moved_of(problem_of):
    """Domain -> its problem whose test items are another domain: all moved by one vector, and looked at unlabelled."""
    out = {}
    for domain, real in problem_of.items():
        there = np.isin(real.items.ids.ids, real.split.test_items.ids)

        def moved(vectors, rng, there=there):
            way = rng.normal(size=vectors.shape[1])
            return vectors + there[:, None] * way / np.linalg.norm(way)

        out[domain] = with_vectors(replace(real, unlabelled=real.split.test_items), moved)
    return out


@pytest.mark.parametrize(("method", "domain"), cells(*ADAPTATIONS))
def test_another_domain_is_brought_nearer_and_serves_no_worse(method, domain, moved_of):
    real = moved_of[domain]
    there = np.isin(real.items.ids.ids, real.split.test_items.ids)
    found = {}
    for name, transfers in (("as it is", []), (method, [ADAPTATIONS[method]])):
        outcome = run(real, TransferTask(ContentProfiles(), transfers=transfers), settings=[{}], draws=2)
        vectors = outcome.task.fusion_.transform(real.embeddings)
        for transfer in outcome.task.transfers:
            vectors = transfer.transform(vectors)
        found[name] = mmd(vectors.vectors[~there], vectors.vectors[there]), outcome.metrics["accuracy"].value
    (apart, before), (nearer, after) = found["as it is"], found[method]
    assert nearer < 0.5 * apart
    assert after > before - 0.1


TUNERS = {
    "fine-tuning": lambda folder: FineTune(folder=folder, epochs=2, learning_rate=1e-3, batch_size=32),
    "distillation": lambda folder: Distil(folder=folder, layers=1, epochs=3, batch_size=32),
    "static encoder": lambda folder: DistilStatic(folder=folder, dim=8, width=16, hidden=16, made_up=200, epochs=2),
}


@pytest.mark.parametrize(("method", "domain"), cells(*TUNERS))
def test_tuned_encoders_tell_kinds_apart_and_are_saved_with_the_task(method, domain, problem_of, tmp_path):
    real = problem_of[domain]
    block = real.encoders[0].modality
    task = TransferTask(head(domain), tuners={block: TUNERS[method](tmp_path / "tuning")})
    outcome = run(real, task, settings=[{}], draws=20)
    assert outcome.metrics["accuracy"].value > 0.75
    assert outcome.reports[block]
    outcome.task.save(tmp_path / "saved")
    (tmp_path / "tuning").rename(tmp_path / "gone")
    asked = real.items.take(np.arange(5))
    again = TransferTask.load(tmp_path / "saved").label(asked)
    np.testing.assert_array_equal(again.items, outcome.task.label(asked).items)


@pytest.mark.parametrize(("method", "domain"), cells("zero-shot", "few-shot"))
def test_few_examples_or_a_description_are_enough(method, domain, problem_of):
    real = problem_of[domain]
    seen = IdMap(real.split.train.items.take(np.unique(real.split.train.item)))
    items, known, examples = real.items, None, 4
    if method == "zero-shot":
        texts = {user: KINDS[str(user).split()[0]] for user in real.split.train.users.ids}
        (items, known), examples = described(real.items, texts, "title"), 0
    split = few_shot(real.split, examples, known=known)
    few = Problem(method, items, split, real.metrics, encoders=real.encoders, unlabelled=seen)
    assert reached(few, TransferTask(ContentProfiles())) > 0.6


@pytest.mark.parametrize(("method", "domain"), cells("augmentation"))
def test_altered_copies_are_learned_from(method, domain, problem_of):
    real = problem_of[domain]
    rows = np.unique(real.split.train.item)
    column, noise = ("image", ImageNoise()) if domain == "vision" else ("title", TextNoise())
    items = real.items.take(rows)
    labelled = real.split.train
    place = np.full(len(real.items), -1)
    place[rows] = np.arange(len(rows))
    own = Interactions(labelled.users, items.ids, labelled.user, place[labelled.item], labelled.weight)
    more = augmented(items, own, {column: noise})
    assert len(more.items) == 2 * len(items)
    task = TransferTask(head(domain), encoders=real.encoders).fit(*more)
    asked = real.items.take(np.unique(real.split.test.item))
    assert kinds_found(task, asked, real) > 0.75


def kinds_found(task, asked, real):
    """Share of the items whose best user is of the kind of one that holds them in the test."""
    best = task.label(asked).items[:, 0]
    test = real.split.test
    holder = {i: str(u).split()[0] for u, i in zip(test.users.take(test.user), test.items.take(test.item), strict=True)}
    return np.mean([str(b).split()[0] == holder[i] for b, i in zip(best, asked.ids.ids, strict=True)])


@pytest.mark.parametrize(("method", "domain"), cells("pseudo-labels"))
def test_sure_answers_become_relations(method, domain, problem_of):
    real = problem_of[domain]
    train = real.split.train
    kinds = Interactions.from_labels(
        [str(u).split()[0] for u in train.users.take(train.user[np.unique(train.item, return_index=True)[1]])],
        IdMap(train.items.take(np.unique(train.item))),
    )
    task = TransferTask(Probe(reg=1.0), encoders=real.encoders).fit(real.items.take(np.unique(train.item)), kinds)
    asked = real.items.take(np.unique(real.split.test.item))
    sure = pseudo_labels(task.label(asked, 3), threshold=0.8)
    assert len(sure) > 5
    test = real.split.test
    holder = {i: str(u).split()[0] for u, i in zip(test.users.take(test.user), test.items.take(test.item), strict=True)}
    said = zip(sure.users.take(sure.user), sure.items.take(sure.item), strict=True)
    assert np.mean([label == holder[item] for label, item in said]) > 0.8


@pytest.mark.parametrize(("method", "domain"), cells("label mapping"))
def test_labels_of_another_set_are_told_by_what_their_items_are_like(method, domain, problem_of):
    """The other set has names that tell nothing, in another order, and no item in common."""
    real = problem_of[domain]
    train = real.split.train
    here = np.isin(train.item, np.unique(train.item)[::2])
    names = np.random.default_rng(0).permutation(len(train.users))
    other = train.select(~here)
    other = Interactions(IdMap([f"set 2, {n}" for n in range(len(names))]), other.items, names[other.user], other.item,
                         other.weight)  # fmt: skip
    (part,) = TransferTask(encoders=real.encoders, progress=False).encode(real.items)
    vectors = part.vectors - part.vectors.mean(axis=0)
    sides = [(e.users, [vectors[e.item[e.user == u]].mean(axis=0) for u in range(len(e.users))])
             for e in (other, train.select(here))]  # fmt: skip
    means = Embeddings(sides[0][0].union(sides[1][0]), np.concatenate([rows for _, rows in sides]))
    mapped = map_labels(other, train.users, names=means)
    kind = {f"set 2, {n}": str(user).split()[0] for n, user in zip(names, train.users.ids, strict=True)}
    told = zip(mapped.table["source"], mapped.table["target"], strict=True)
    assert all(kind[source] == str(target).split()[0] for source, target in told)
    items = real.items.take(np.unique(mapped.relations.item))
    task = TransferTask(head(domain), encoders=real.encoders).fit(items, _over(mapped.relations, items))
    assert kinds_found(task, real.items.take(np.unique(real.split.test.item)), real) > 0.75


@pytest.mark.parametrize(("method", "domain"), cells("partial fit", "replay"))
def test_learning_goes_on_with_new_relations(method, domain, problem_of):
    real = problem_of[domain]
    train = real.split.train
    first = np.isin(train.item, np.unique(train.item)[::2])
    old, new = train.select(first), train.select(~first)
    if method == "replay":
        mixed = Replay(size=20)(old, new)
        assert len(new) < len(mixed) <= len(new) + 20
        items = real.items.take(np.unique(mixed.item))
        task = TransferTask(head(domain), encoders=real.encoders).fit(items, _over(mixed, items))
    else:
        items = real.items.take(np.unique(old.item))
        task = TransferTask(head(domain), encoders=real.encoders).fit(items, _over(old, items))
        more = real.items.take(np.unique(new.item))
        task.partial_fit(more, _over(new, more))
        assert task.recommender.update_["items"] == len(more)
    assert kinds_found(task, real.items.take(np.unique(real.split.test.item)), real) > 0.75


def _over(events, items):
    """The events over a map of their own items alone."""
    at = items.ids.positions(events.items.take(events.item))
    return Interactions(events.users, items.ids, events.user, at, events.weight)


@pytest.mark.parametrize(("method", "domain"), cells("model fusion"))
def test_several_models_are_fused(method, domain, problem_of):
    """What tells nothing misleads one member more than the other; the fusion trusts that one less."""
    strength = 1 if domain == "recommender" else 3  # shoppers' behaviour says nothing of new items
    real = with_vectors(problem_of[domain], lambda vectors, rng: buried(vectors, rng, strength))
    members = [head(domain), ContentProfiles()]
    alone = [reached(real, TransferTask(member)) for member in members]
    outcome = run(real, TransferTask(WeightedFusion(members=members)), settings=[{}], draws=2)
    fused = outcome.metrics["accuracy"].value
    assert fused > max(alone) - 0.05
    assert fused > 0.7
    better, worse = outcome.task.recommender.weights_.values()
    assert better > worse


@pytest.mark.parametrize(("method", "domain"), cells("gain over an ablation"))
def test_what_content_gained_is_told_with_an_interval(method, domain, problem_of):
    real = problem_of[domain]
    mine = run(real, TransferTask(head(domain)), settings=[{}], draws=50, name="content")
    ablation = run(with_vectors(real, noise), TransferTask(head(domain)), settings=[{}], draws=50, name="noise")
    assert gain(mine, ablation, right_kind, draws=200).low > 0
    assert gain(mine, mine, right_kind, draws=200)[:3] == (0, 0, 0)


def noise(vectors, rng):
    return rng.normal(size=vectors.shape)


@pytest.mark.parametrize(("method", "domain"), cells("guard"))
def test_content_is_kept_where_it_helps_and_taken_out_where_it_is_noise(method, domain, problem_of):
    real = problem_of[domain]
    split = real.split
    ablation = TransferTask(head(domain), encoders=[]).fit(real.items, split.train).recommender
    for problem, kept in ((with_vectors(real, lambda vectors, rng: vectors), True), (with_vectors(real, noise), False)):
        transfer = (
            TransferTask(head(domain), encoders=[])
            .fit(problem.items, split.train, embeddings=problem.embeddings)
            .recommender
        )
        found = guard(transfer, ablation, split.valid, allow=split.valid_items, draws=200)
        assert found.verdict.kept == kept
        assert (found.recommender is ablation) != kept


def test_the_table_of_the_architecture_is_this_one():
    text = (REPO / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    told = {name.strip(): [cell.strip() for cell in row] for name, *row in rows if name.strip() in MATRIX}
    wanted = {m: ["tested" if MATRIX[m][d] is None else MATRIX[m][d] for d in DOMAINS] for m in MATRIX}
    assert told == wanted
