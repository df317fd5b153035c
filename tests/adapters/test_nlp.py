"""Language as problems of the core: labels, answers, spans and translations, on made-up texts."""

import numpy as np
import pandas as pd
import pytest
from tiny import sentence_model

from recotransfer import ContentProfiles, Probe, TransferTask, experiments
from recotransfer.adapters import nlp
from recotransfer.encoders import HashingText, SentenceText
from recotransfer.errors import InputError

TOPICS = {"sport": "ball goal team match", "food": "soup bread salt pan", "music": "song drum band tune"}
TEXT = HashingText(column="text", dim=256)


def run(problem, recommender, **settings):
    return experiments.run(problem, TransferTask(recommender, progress=False), draws=50, settings=[{}], **settings)


def notes(n=150, seed=0):
    """Texts of three words of their topic each, and the topics."""
    draw = np.random.default_rng(seed)
    topics = draw.choice(list(TOPICS), n)
    return [" ".join(draw.choice(TOPICS[topic].split(), 3)) for topic in topics], topics.tolist()


def quiz(questions=24, seed=0):
    """Questions on a number; of four sentences the one with the number and the question's word predictions."""
    draw = np.random.default_rng(seed)
    rows = []
    for q in range(questions):
        part = ("train", "train", "dev", "test")[q % 4]
        right = draw.integers(4)
        for place in range(4):
            own = f"thing{q} has colour{draw.integers(9)}" if place == right else f"other{draw.integers(99)} is {place}"
            rows.append((part, f"which colour has thing{q}", own, int(place == right), place))
    return pd.DataFrame(rows, columns=["split", "question", "sentence", "label", "place"])


# -- labels ------------------------------------------------------------------------------------------------------------


def test_labels_are_users_and_parts_have_the_names_that_data_sets_use():
    texts, topics = notes()
    part = np.resize(["train", "train", "dev", "test", "spare"], len(texts))
    problem = nlp.classification(texts, topics, part, encoders=[TEXT])
    split = problem.split
    assert [len(split.train), len(split.valid), len(split.test)] == [60, 30, 30]
    assert split.train.users.ids.tolist() == sorted(TOPICS)
    outcome = run(problem, Probe())
    assert outcome.metrics["accuracy"].value == 1
    assert outcome.predictions.best.tolist() == [topics[i] for i in outcome.predictions.queries]
    assert nlp.classification(texts, topics, part).encoders[0].column == ["text"]


def test_each_text_is_in_the_test_of_one_fold():
    texts, topics = notes(60)
    table = pd.DataFrame({"title": texts, "more": texts}, index=np.arange(60) + 7)
    made = list(nlp.folds(table, topics, folds=3, encoders=[HashingText(column=["title", "more"])]))
    tested = np.concatenate([problem.split.test.item for problem in made])
    assert sorted(tested) == list(range(60))
    whole = experiments.combine_outcomes([run(problem, Probe()) for problem in made], made[0].metrics)
    assert whole.metrics["accuracy"].value == 1


def test_groups_of_texts_stay_together_and_are_drawn_together():
    texts, topics = notes(60)
    authors = [f"author {at // 3}" for at in range(60)]
    part = np.resize(np.repeat(["train", "dev", "test"], 3), 60)
    problem = nlp.classification(texts, topics, part, encoders=[TEXT], groups=authors)
    predictions = run(problem, Probe()).predictions
    assert len(predictions.queries) == 18
    assert len(np.unique(predictions.groups)) == 6
    with pytest.raises(InputError, match="'author 0' has items in two parts"):
        nlp.classification(texts, topics, np.resize(["train", "test"], 60), encoders=[TEXT], groups=authors)
    for fold in nlp.folds(texts, topics, folds=3, encoders=[TEXT], groups=authors):
        tested, seen = ({authors[at] for at in np.unique(log.item)} for log in (fold.split.test, fold.split.train))
        assert not tested & seen
        assert len(np.unique(fold.groups[fold.split.test.item])) == len(tested)


def test_few_keeps_few_labels_and_descriptions_count_as_examples():
    texts, topics = notes()
    problem = nlp.classification(texts, topics, np.resize(["train", "train", "test"], len(texts)), encoders=[TEXT])
    assert np.bincount(nlp.few(problem, 2).split.train.user).tolist() == [2, 2, 2]
    assert len(nlp.few(problem, 2).unlabelled) == 100
    zero = nlp.few(problem, 0, about=TOPICS)
    assert sorted(zero.split.train.items.take(zero.split.train.item)) == [("about", name) for name in sorted(TOPICS)]
    assert run(zero, ContentProfiles()).metrics["accuracy"].value == 1
    assert len(zero.split.test) == len(problem.split.test)


# -- answers -------------------------------------------------------------------------------------------------------


def test_questions_are_asked_from_their_own_words_among_their_candidates():
    table = quiz()
    problem = nlp.answer_selection(table, encoders=[TEXT])
    assert problem.split.train.users.take(np.unique(problem.split.train.user)).tolist() == [
        q for q in pd.unique(table.question) if (table.split[table.question == q] == "train").all()
    ]
    outcome = run(problem, ContentProfiles())
    assert outcome.metrics["MAP"].value == 1
    predictions = outcome.predictions
    assert predictions.queries.tolist() == pd.unique(table.question[table.split == "test"]).tolist()
    assert (np.isfinite(predictions.scores).sum(axis=1) == 4).all()
    assert predictions.best.tolist() == table.sentence[(table.split == "test") & (table.label == 1)].tolist()


def test_a_question_without_an_answer_is_not_asked_and_one_in_two_parts_is_refused():
    table = quiz()
    lost = table.question[table.split == "test"].iloc[0]
    table.loc[table.question == lost, "label"] = 0
    assert lost not in run(nlp.answer_selection(table, encoders=[TEXT]), ContentProfiles()).predictions.queries
    twice = pd.concat([table, table[table.split == "train"].assign(split="test")])
    with pytest.raises(InputError, match="is asked in train and in test"):
        nlp.answer_selection(twice)
    with pytest.raises(InputError, match="no column 'query'"):
        nlp.answer_selection(table, question="query")


def test_pairs_come_back_as_questions_in_the_order_of_answer_selection():
    table = quiz(40).sample(frac=1, random_state=0)
    lost = table.question[table.split == "test"].iloc[0]
    table.loc[table.question == lost, "label"] = 0
    table["likeness"] = np.random.default_rng(0).random(len(table)) + table.label / 2
    pairs = nlp.answer_pairs(table, encoders=[HashingText(column=["question", "sentence"])])
    assert list(pairs.items.columns) == ["question", "sentence", "place", "likeness"]
    outcome = run(pairs, Probe())
    asked = nlp.by_question(outcome)
    plain = run(nlp.answer_selection(table, encoders=[TEXT]), ContentProfiles())
    assert asked.predictions.queries.tolist() == plain.predictions.queries.tolist()
    assert asked.metrics["MAP"].value == pytest.approx(outcome.metrics["MAP"].value)
    difference = experiments.gain(asked, plain, experiments.mean_average_precision, draws=20).value
    assert difference == pytest.approx(asked.metrics["MAP"].value - plain.metrics["MAP"].value)
    found = []
    scores = dict(zip(outcome.predictions.queries, outcome.predictions.scores[:, 0], strict=True))
    test = table.reset_index(drop=True).query("split == 'test' and question != @lost")
    for _, rows in test.groupby("question"):
        order = sorted(rows.index, key=lambda row: -scores[row])
        found.append(1 / (1 + [rows.label[row] for row in order].index(1)))
    assert asked.metrics["MAP"].value == pytest.approx(np.mean(found))


def test_a_group_drawn_twice_counts_twice():
    predictions = run(
        nlp.answer_pairs(quiz(), encoders=[HashingText(column=["question", "sentence"])]), Probe()
    ).predictions
    first = np.flatnonzero(predictions.groups == predictions.groups[0])
    rest = np.flatnonzero(predictions.groups != predictions.groups[0])
    drawn = nlp._grouped(predictions.take(np.concatenate([first, rest, first])))
    once = nlp._grouped(predictions)
    assert len(drawn.queries) == len(once.queries) + 1
    value = experiments.mean_average_precision(once) * len(once.queries)
    alone = experiments.mean_average_precision(nlp._grouped(predictions.take(first)))
    assert experiments.mean_average_precision(drawn) == pytest.approx((value + alone) / (len(once.queries) + 1))


# -- spans -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A sentence model of no layers that tells words apart, for texts of up to 16 tokens."""
    words = ["who", "where", "when", "ada", "paris", "monday", "went", "to", "on", "."]
    model = sentence_model(tmp_path_factory.mktemp("tiny"), words, layers=0, embeddings=1, others=1)
    return SentenceText(model=model, column="text", precision="float32")


def test_windows_are_all_runs_of_words():
    text = "Ada  went, to"
    assert [text[b:e] for b, e in nlp.windows(text, longest=2)] == ["Ada", "Ada  went,", "went,", "went, to", "to"]
    assert nlp.windows("") == []


def test_a_span_is_the_mean_of_its_token_states_in_its_passage(tiny):
    passage = "ada went to paris on monday ."
    rows = [
        ("train", "who went", passage, b, e, int(passage[b:e] == "ada")) for b, e in nlp.windows(passage, longest=2)
    ]
    rows += [("test", "where went ada", passage, b, e, int(passage[b:e] == "paris")) for _, _, _, b, e, _ in rows]
    table = pd.DataFrame(rows, columns=["split", "question", "passage", "begin", "end", "label"])
    problem = nlp.span_answers(table, encoder=tiny)
    part = problem.embeddings[0]
    assert part.has_content.all()
    states = tiny.module().eval()(tiny.collate([passage])).dense[0].detach().numpy()[1:-1]
    at = part.ids.positions([(passage, 0, 8)])
    np.testing.assert_allclose(
        part.vectors[at[0]], states[:2].mean(axis=0) / np.linalg.norm(states[:2].mean(axis=0)), atol=1e-5
    )
    own = part.vectors[part.ids.positions([("about", "who went")])[0]]
    whole = tiny.encode(["who went"])[0]
    assert own @ whole / np.linalg.norm(whole) > 0.5
    outcome = run(problem, ContentProfiles())
    assert np.isfinite(outcome.predictions.scores).sum() == len(nlp.windows(passage, longest=2))


def test_spans_past_the_longest_text_have_no_vector_and_come_last(tiny):
    passage = " ".join(["went to paris ."] * 6)
    pieces = nlp.windows(passage, longest=1)
    rows = [(part, f"{part} who", passage, b, e, int(b == 0)) for part in ("train", "test") for b, e in pieces]
    problem = nlp.span_answers(
        pd.DataFrame(rows, columns=["split", "question", "passage", "begin", "end", "label"]), encoder=tiny
    )
    there = problem.embeddings[0].has_content[problem.embeddings[0].ids.positions([(passage, b, e) for b, e in pieces])]
    assert there.tolist() == [True] * 14 + [False] * (len(pieces) - 14)
    scores = run(problem, ContentProfiles()).predictions.scores[0]
    assert (scores[~np.array(there)] == scores.min()).all()


# -- translations ------------------------------------------------------------------------------------------------------


def test_translations_are_found_and_pairs_keep_the_order_of_the_records():
    table = pd.DataFrame(
        {
            "split": ["train", "train", "val", "test", "test", "test"],
            "en": ["one a", "two b", "three c", "four d", "one a", "five e"],
            "de": ["ein a", "zwei b", "drei c", "vier d", "eins a", "vier d"],
        }
    )
    problem = nlp.translation(table, source="en", target="de", encoders=[TEXT])
    for part, own in (("train", "train"), ("valid", "val"), ("test", "test")):
        rows = table[table.split == own]
        assert nlp.pairs(problem, part) == (rows.en.tolist(), rows.de.tolist())
    outcome = run(problem, ContentProfiles())
    assert outcome.predictions.scores.shape == (3, 2)  # three questions, two different sentences
    assert outcome.predictions.best[:2].tolist() == ["vier d", "eins a"]
