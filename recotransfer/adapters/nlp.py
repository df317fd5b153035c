"""Language: texts with labels, questions with answers, passages with spans and translations, as problems of the core.

Nothing here learns: records become items and relations, and answers become text again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer import experiments
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import Encoder, SentenceText
from recotransfer.errors import InputError
from recotransfer.evaluation.split import Split
from recotransfer.experiments import Outcome, Predictions, Problem
from recotransfer.transfer import Pairs

_FOUND = {"MAP": experiments.mean_average_precision, "MRR": experiments.mean_reciprocal_rank}


def classification(
    texts: pd.DataFrame | Sequence[str],
    labels: Sequence[Any],
    part: ArrayLike,
    *,
    encoders: Sequence[Encoder] | None = None,
    groups: Sequence[Any] | None = None,
    name: str = "classification",
) -> Problem:
    """Which label each text bears: texts are items, labels the users who hold them.

    Args:
        texts: one text each, or several columns of text.
        labels: one of each; None is unlabelled.
        part: "train", "valid" or "test" of each; rows of other parts are left out.
        encoders: what reads the columns; all-MiniLM-L6-v2 by default. A list is read as the column "text".
        groups: of each, such as its author: none may stand in two parts, and intervals draw whole ones.
        name: of the problem.
    """
    items, relations = _labelled(texts, labels)
    own = experiments.grouped(groups, len(items))
    split = experiments.split_items(relations, part, groups=groups)

    return Problem(name, items, split, experiments.LABEL_METRICS, encoders=_encoders(encoders, items), groups=own)


def folds(
    texts: pd.DataFrame | Sequence[str],
    labels: Sequence[Any],
    *,
    folds: int = 5,
    encoders: Sequence[Encoder] | None = None,
    groups: Sequence[Any] | None = None,
    name: str = "classification",
    seed: int = 0,
) -> Iterator[Problem]:
    """Problems as `classification` makes, in which each labelled text is in the test once; groups stay together.

    `experiments.joined` makes one outcome of theirs.
    """
    items, relations = _labelled(texts, labels)
    own = experiments.grouped(groups, len(items))
    for split in experiments.fold_items(relations, folds=folds, groups=groups, seed=seed):
        yield Problem(name, items, split, experiments.LABEL_METRICS, encoders=_encoders(encoders, items), groups=own)


def few(
    problem: Problem, examples: int, *, about: Mapping[Any, str] | None = None, weight: float = 1.0, seed: int = 0
) -> Problem:
    """The same question with few labelled texts to learn from; the other texts of train may be looked at unlabelled.

    Args:
        problem: one of `classification`.
        examples: labelled texts kept of each label, drawn by lot; 0 is zero-shot.
        about: label -> a text that says what it means, as one more example.
        weight: how many examples such a text counts as, to recommenders that weigh them.
        seed: random seed.
    """
    split = problem.split
    seen = IdMap(split.train.items.take(np.unique(split.train.item)))
    items, known = problem.items, None
    if about is not None:
        items, known = experiments.described(problem.items, about, problem.items.of_kind("text")[0])
        known = replace(known, weight=weight * known.weight)

    return replace(
        problem,
        name=f"{problem.name}, {examples} per label",
        items=items,
        split=experiments.few_shot(split, examples, known=known, seed=seed),
        unlabelled=seen,
    )


def answer_selection(
    records: pd.DataFrame,
    *,
    question: str = "question",
    sentence: str = "sentence",
    label: str = "label",
    part: str = "split",
    encoders: Sequence[Encoder] | None = None,
    name: str = "answer selection",
) -> Problem:
    """Which of its candidate sentences answer a question: questions are users, sentences the items they hold.

    A question's own words are an item too, and all that is known of a question of validation or test. Learning from
    co-consumption (`FineTune(objective="pairs")`) brings questions of train next to their predictions. Only questions
    with an answer among their candidates are asked.

    Args:
        records: one row per question and candidate.
        question: column of text.
        sentence: column of text.
        label: column that is 1 or True where the sentence predictions.
        part: column of "train", "valid" (or "dev", "val") and "test".
        encoders: what reads the column "text"; all-MiniLM-L6-v2 by default.
        name: of the problem.
    """
    t = _columns(records, question=question, item=sentence, label=label, part=part)
    problem = _candidates(t, t["question"], t["item"], name)

    return replace(problem, encoders=_encoders(encoders, problem.items))


def answer_pairs(
    records: pd.DataFrame,
    *,
    question: str = "question",
    sentence: str = "sentence",
    label: str = "label",
    part: str = "split",
    encoders: Sequence[Encoder] | None = None,
    name: str = "answer pairs",
) -> Problem:
    """The same task asked pair by pair: an item is a question with one candidate, its label whether that answers it.

    An encoder that is tuned on these reads both texts together (a cross-encoder). Other columns of the records stay
    columns of the items, for encoders of attributes. The queries of the predictions are pairs; `by_question` turns
    them into those of `answer_selection`.

    Args: as `answer_selection`; encoders read the columns "question" and "sentence", together by default.
    """
    t = _columns(records, question=question, sentence=sentence, label=label, part=part)
    more = records.drop(columns=[question, sentence, label, part]).reset_index(drop=True)
    items = Items(
        IdMap(np.arange(len(t))),
        pd.concat([t[["question", "sentence"]], more], axis=1),
        {"question": "text", "sentence": "text"},
    )
    right = np.where(t["label"].to_numpy(float) > 0, "answer", "other")
    split = experiments.split_items(Interactions.from_labels(right.tolist(), items.ids), t["part"])
    metrics = {"MAP": _pair_precision, "MRR": _pair_rank}

    return Problem(
        name, items, split, metrics, encoders=_encoders(encoders, items), groups=t["question"].to_numpy(object)
    )


def compared(parts: Sequence[Embeddings]) -> list[Embeddings]:
    """The vectors of questions and of sentences, and how they agree number by number, for a probe on `answer_pairs`.

    The product of two sentence vectors is what Conneau et al., "Supervised learning of universal sentence
    representations from natural language inference data" (2017), give a classifier of pairs.

    Args:
        parts: of the pairs' questions and of their sentences, by two encoders that read one column each.
    """
    asked, told = parts
    both = asked.has_content & told.has_content
    product = Embeddings(asked.ids, asked.vectors * told.vectors, f"{told.source} x {asked.source}", both)

    return [asked, told, product]


def by_question(outcome: Outcome) -> Outcome:
    """The outcome of an `answer_pairs` problem with questions as queries, comparable with `answer_selection`'s."""
    return experiments.joined([replace(outcome, predictions=_grouped(outcome.predictions))], _FOUND)


def _pair_precision(a: Predictions) -> float:
    """Mean average precision over the questions of pairs."""
    return experiments.mean_average_precision(_grouped(a))


def _pair_rank(a: Predictions) -> float:
    """Mean reciprocal rank over the questions of pairs."""
    return experiments.mean_reciprocal_rank(_grouped(a))


def _grouped(a: Predictions) -> Predictions:
    """One row per group with a true pair, in order of appearance; its candidates are the places of its pairs.

    In a draw of the bootstrap a group may come several times; each time is a row.
    """
    answer = int(a.candidates.positions(["answer"])[0])
    group, time = pd.factorize(a.groups)[0], _count(pd.factorize(a.queries)[0])
    row, first = pd.factorize(group + (1 + group.max()) * time)
    place = _count(row)
    scores = np.full((len(first), place.max() + 1), -np.inf, np.float32)
    truth = np.zeros(scores.shape, bool)
    scores[row, place], truth[row, place] = a.scores[:, answer], a.truth[:, answer]
    queries = np.asarray(a.groups)[np.unique(row, return_index=True)[1]]
    kept = np.flatnonzero(truth.any(axis=1))

    return Predictions(queries[kept], IdMap(np.arange(scores.shape[1])), truth[kept], scores[kept], queries[kept])


def _count(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each value came before."""
    order = np.argsort(values, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(values))])[values[order]]
    out = np.empty(len(values), np.int64)
    out[order] = np.arange(len(values)) - first
    return out


def _candidates(t: pd.DataFrame, words: pd.Series, texts: pd.Series, name: str) -> Problem:
    """A problem of questions that hold the right ones of their candidates.

    Args:
        t: columns question, item, label and part.
        words: of the questions, row by row.
        texts: of the items, row by row.
        name: of the problem.
    """
    own = ~t["item"].duplicated().to_numpy()
    ids = IdMap(t["item"][own])
    plain = Items(ids, pd.DataFrame({"text": texts[own].to_numpy(object)}), {"text": "text"})
    items, known = experiments.described(plain, dict(zip(t["question"], words, strict=True)), "text")
    pairs = Interactions.from_frame(t, user="question", item="item", users=known.users, items=items.ids)
    part, right = experiments.named_parts(t["part"]), t["label"].to_numpy(float) > 0
    rows = {key: pairs.select(np.flatnonzero(right & (part == key))) for key in experiments.SIDES}

    for key in ("valid", "test"):
        if len(both := np.intersect1d(pairs.user[part == "train"], pairs.user[part == key])):
            raise InputError(
                f"{known.users.take(both[:1])[0]!r} is asked in train and in {key}; give each question to one part"
            )

    of_train = np.zeros(len(known.users), bool)
    of_train[rows["train"].user] = True
    train = known.select(of_train[known.user]).joined(rows["train"])  # other questions are known when they are asked
    valid, test = (IdMap(items.ids.take(np.unique(pairs.item[part == key]))) for key in ("valid", "test"))
    split = Split(train, rows["valid"], rows["test"], known, known, valid, test, name)

    return Problem(name, items, split, _FOUND, asks="items", candidates=pairs)


def windows(passage: str, *, longest: int = 8) -> list[tuple[int, int]]:
    """(begin, end) in characters of every piece of up to `longest` words: candidates for an answer.

    >>> [("a big dog"[b:e]) for b, e in windows("a big dog", longest=2)]
    ['a', 'a big', 'big', 'big dog', 'dog']
    """
    words = [match.span() for match in re.finditer(r"\S+", passage)]
    return [(begin, end) for at, (begin, _) in enumerate(words) for _, end in words[at : at + longest]]


def span_answers(
    records: pd.DataFrame,
    *,
    question: str = "question",
    passage: str = "passage",
    begin: str = "begin",
    end: str = "end",
    label: str = "label",
    part: str = "split",
    encoder: SentenceText | None = None,
    name: str = "span answers",
) -> Problem:
    """Which piece of its passage answers a question: `answer_selection` with pieces of passages as items.

    A piece is read within its passage: its vector is the mean of its token states there. Pieces past the encoder's
    longest text have no vector and come last. Ids of items are (passage, begin, end).

    Args:
        records: one row per question and candidate piece, such as `windows` gives.
        question: column of text.
        passage: column of text.
        begin: column with the character of its passage at which the piece begins.
        end: column with the character after its last.
        label: column that is 1 or True where the piece predictions.
        part: column of "train", "valid" (or "dev", "val") and "test".
        encoder: what reads passages and questions; all-MiniLM-L6-v2 by default.
        name: of the problem.
    """
    t = _columns(records, question=question, passage=passage, begin=begin, end=end, label=label, part=part)
    places = list(zip(t["passage"], t["begin"].astype(int), t["end"].astype(int), strict=True))
    t["item"] = places
    problem = _candidates(t, t["question"], pd.Series([text[first:last] for text, first, last in places]), name)
    encoder = SentenceText(column="text") if encoder is None else encoder
    asked = [text for (kind, *_), text in zip(problem.items.ids.ids, problem.items.columns["text"], strict=True)]
    spans = [id if len(id) == 3 else (asked[at], 0, len(asked[at])) for at, id in enumerate(problem.items.ids.ids)]
    vectors = encoder.spans(spans)
    present = np.asarray(vectors.any(axis=1))

    return replace(problem, embeddings=[Embeddings(problem.items.ids, vectors, f"{encoder.name}/spans", present)])


def translation(
    records: pd.DataFrame,
    *,
    source: str,
    target: str,
    part: str = "split",
    encoders: Sequence[Encoder] | None = None,
    name: str = "translation",
) -> Problem:
    """Which sentence says the same: source sentences are users who hold their translations.

    The problem asks for the translation among all targets of its part. To write one that nobody has written before,
    give `pairs` of the problem to `transfer.generation.Translator`.

    Args:
        records: one row per pair.
        source: column of text.
        target: column of text.
        part: column of "train", "valid" (or "dev", "val") and "test".
        encoders: what reads the column "text"; all-MiniLM-L6-v2 by default.
        name: of the problem.
    """
    t = _columns(records, source=source, item=target, part=part).assign(label=1)
    t["question"] = np.arange(len(t))  # a sentence may be said in two ways
    problem = replace(_candidates(t, t["source"], t["item"], name), candidates=None)

    return replace(problem, encoders=_encoders(encoders, problem.items))


def pairs(problem: Problem, part: Literal["train", "valid", "test"]) -> Pairs:
    """Sources and targets of a part of a `translation` problem, in the order of its records."""
    text = problem.items.columns["text"].to_numpy(object)
    own = problem.split.test_history  # each source's own words
    said = np.empty(len(own.users), object)
    said[own.user] = text[problem.items.ids.positions(own.items.ids)[own.item]]
    events: Interactions = getattr(problem.split, part)
    events = events.select(~np.isin(events.item, own.item))
    at = problem.items.ids.positions(events.items.ids)[events.item]
    order = np.argsort(events.user, kind="stable")

    return Pairs(said[events.user[order]].tolist(), text[at[order]].tolist())


def _labelled(texts: pd.DataFrame | Sequence[str], labels: Sequence[Any]) -> tuple[Items, Interactions]:
    frame = texts.reset_index(drop=True) if isinstance(texts, pd.DataFrame) else pd.DataFrame({"text": list(texts)})
    items = Items(IdMap(np.arange(len(frame))), frame, dict.fromkeys(frame.columns, "text"))
    return items, Interactions.from_labels(labels, items.ids)


def _encoders(given: Sequence[Encoder] | None, items: Items) -> Sequence[Encoder]:
    return [SentenceText(column=items.of_kind("text"))] if given is None else given


def _columns(records: pd.DataFrame, **names: str) -> pd.DataFrame:
    """The named columns under their own names, rows in order."""
    if lost := [name for name in names.values() if name not in records.columns]:
        raise InputError(f"the records have no column {lost[0]!r}; they have {list(records.columns)}")

    return pd.DataFrame({own: records[name].to_numpy() for own, name in names.items()})
