"""Language: text classification, answer selection, span answers and translation as problems.

Nothing here learns: records become items and relations, and predictions become text again.
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
from recotransfer.encoders import Encoder, SentenceText, TfidfText
from recotransfer.errors import InputError
from recotransfer.evaluation.split import Split
from recotransfer.experiments import Outcome, Predictions, Problem
from recotransfer.transfer import Pairs

_RANKING_METRICS = {"MAP": experiments.mean_average_precision, "MRR": experiments.mean_reciprocal_rank}


def classification(
    texts: pd.DataFrame | Sequence[str],
    labels: Sequence[Any],
    part: ArrayLike,
    *,
    encoders: Sequence[Encoder] | None = None,
    groups: Sequence[Any] | None = None,
    name: str = "classification",
) -> Problem:
    """The problem of classifying texts: texts are items, and labels are their users.

    Args:
        texts: a list of texts, or a table with one or more columns of text.
        labels: label of each text; None is unlabelled.
        part: "train", "valid" or "test" for each text; rows with any other value are ignored.
        encoders: encoders of the columns; all-MiniLM-L6-v2 by default. A list of texts becomes the column "text".
        groups: group of each text, such as its author: a group must stay in one part, and the bootstrap resamples whole
            groups.
        name: name of the problem.

    Raises:
        InputError: a group has texts in two parts.
    """
    items, relations = _labelled(texts, labels)
    group_numbers = experiments.group_codes(groups, len(items))
    split = experiments.split_items(relations, part, groups=groups)

    return Problem(
        name, items, split, experiments.LABEL_METRICS, encoders=_encoders(encoders, items), groups=group_numbers
    )


def words_of(problem: Problem) -> TfidfText:
    """TF-IDF of the words of the problem's texts, with a vocabulary from its training part: a rival of every encoder.

    Fit it with `Probe(standardise=False)`.

    Args:
        problem: made by `classification`.

    Raises:
        InputError: no training text holds a word.
    """
    train = problem.split.train
    items = problem.items.take(problem.items.ids.positions(train.items.take(np.unique(train.item))))
    columns = items.of_kind("text")

    return TfidfText.learned(TfidfText(column=columns).values(items), column=columns)


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
    """Problems for cross-validated text classification, one per fold; groups stay together.

    Each labelled text is in the test part of exactly one of them. `experiments.combine_outcomes` merges their outcomes.

    Args:
        texts: as in `classification`.
        labels: as in `classification`.
        folds: number of problems.
        encoders: as in `classification`.
        groups: as in `classification`.
        name: name of the problems.
        seed: random seed of the folds.
    """
    items, relations = _labelled(texts, labels)
    group_numbers = experiments.group_codes(groups, len(items))
    for split in experiments.fold_items(relations, folds=folds, groups=groups, seed=seed):
        yield Problem(
            name, items, split, experiments.LABEL_METRICS, encoders=_encoders(encoders, items), groups=group_numbers
        )


def few(
    problem: Problem, examples: int, *, about: Mapping[Any, str] | None = None, weight: float = 1.0, seed: int = 0
) -> Problem:
    """The few-shot version of a problem: few labelled training texts, the others available without their labels.

    Args:
        problem: made by `classification`.
        examples: labelled texts to keep per label, sampled at random; 0 is zero-shot.
        about: label -> a description of it, which is used as one more training text.
        weight: how many examples a description counts as, for recommenders that weight events.
        seed: random seed of the sample.
    """
    split = problem.split
    unlabelled = IdMap(split.train.items.take(np.unique(split.train.item)))
    items, descriptions = problem.items, None
    if about is not None:
        items, descriptions = experiments.described(problem.items, about, problem.items.of_kind("text")[0])
        descriptions = replace(descriptions, weight=weight * descriptions.weight)

    return replace(
        problem,
        name=f"{problem.name}, {examples} per label",
        items=items,
        split=experiments.few_shot(split, examples, known=descriptions, seed=seed),
        unlabelled=unlabelled,
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
    """The problem of choosing the sentences that answer a question: questions are users, and sentences are items.

    The text of a question is an item too, and the only history of a validation or test question. Training on
    co-occurring items (`FineTune(objective="pairs")`) therefore moves training questions towards their answers. Only
    questions with an answer among their candidates are evaluated.

    Args:
        records: one row per question and candidate sentence.
        question: name of the column of questions.
        sentence: name of the column of candidate sentences.
        label: name of the column that is 1 or True if the sentence answers the question.
        part: name of the column of "train", "valid" (or "dev", "val") and "test".
        encoders: encoders of the column "text"; all-MiniLM-L6-v2 by default.
        name: name of the problem.

    Raises:
        InputError: a column is missing, or a question is in train and in another part.
    """
    table = _columns(records, question=question, item=sentence, label=label, part=part)
    problem = _candidates(table, table["question"], table["item"], name)

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
    """The problem of classifying question-sentence pairs: each pair is an item, labelled "answer" or "other".

    An encoder tuned on it reads both texts together (a cross-encoder). All other columns of the records become columns
    of the items, for encoders of attributes. Queries of its predictions are pairs; `by_question` turns them into
    questions, as in `answer_selection`.

    Args: as in `answer_selection`; encoders read the columns "question" and "sentence", together by default.
    """
    table = _columns(records, question=question, sentence=sentence, label=label, part=part)
    attributes = records.drop(columns=[question, sentence, label, part]).reset_index(drop=True)
    items = Items(
        IdMap(np.arange(len(table))),
        pd.concat([table[["question", "sentence"]], attributes], axis=1),
        {"question": "text", "sentence": "text"},
    )
    labels = np.where(table["label"].to_numpy(float) > 0, "answer", "other")
    split = experiments.split_items(Interactions.from_labels(labels.tolist(), items.ids), table["part"])
    metrics = {"MAP": _pair_precision, "MRR": _pair_rank}

    return Problem(
        name, items, split, metrics, encoders=_encoders(encoders, items), groups=table["question"].to_numpy(object)
    )


def compared(parts: Sequence[Embeddings]) -> list[Embeddings]:
    """The embeddings of questions and sentences, and their element-wise product, for a probe on `answer_pairs`.

    A classifier of pairs needs the product to see where both vectors agree (Conneau et al., "Supervised learning of
    universal sentence representations from natural language inference data", 2017).

    Args:
        parts: embeddings of the pairs' questions and of their sentences, by two encoders of one column each.
    """
    questions, sentences = parts
    both = questions.has_content & sentences.has_content
    source = f"{sentences.source} x {questions.source}"
    product = Embeddings(questions.ids, questions.vectors * sentences.vectors, source, both)

    return [questions, sentences, product]


def by_question(outcome: Outcome) -> Outcome:
    """The outcome of an `answer_pairs` problem with questions as queries, comparable with `answer_selection`'s."""
    return experiments.combine_outcomes([replace(outcome, predictions=_grouped(outcome.predictions))], _RANKING_METRICS)


def _pair_precision(a: Predictions) -> float:
    """Mean average precision over questions."""
    return experiments.mean_average_precision(_grouped(a))


def _pair_rank(a: Predictions) -> float:
    """Mean reciprocal rank over questions."""
    return experiments.mean_reciprocal_rank(_grouped(a))


def _grouped(a: Predictions) -> Predictions:
    """One row per question with an answer, in order of appearance; its candidates are the numbers of its pairs.

    A bootstrap resample may draw a question several times; each time becomes a row.
    """
    answer = int(a.candidates.positions(["answer"])[0])
    group = pd.factorize(a.groups)[0]
    time_drawn = _occurrence(pd.factorize(a.queries)[0])
    row, first = pd.factorize(group + (1 + group.max()) * time_drawn)
    column = _occurrence(row)

    scores = np.full((len(first), column.max() + 1), -np.inf, np.float32)
    truth = np.zeros(scores.shape, bool)
    scores[row, column] = a.scores[:, answer]
    truth[row, column] = a.truth[:, answer]
    queries = np.asarray(a.groups)[np.unique(row, return_index=True)[1]]
    answered = np.flatnonzero(truth.any(axis=1))

    return Predictions(
        queries[answered],
        IdMap(np.arange(scores.shape[1])),
        truth[answered],
        scores[answered],
        queries[answered],
    )


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of earlier occurrences of each value."""
    order = np.argsort(values, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(values))])[values[order]]
    out = np.empty(len(values), np.int64)
    out[order] = np.arange(len(values)) - first
    return out


def _candidates(table: pd.DataFrame, question_texts: pd.Series, item_texts: pd.Series, name: str) -> Problem:
    """A problem of questions that are to find the right ones among their candidates.

    Args:
        table: columns question, item, label and part.
        question_texts: text of each row's question.
        item_texts: text of each row's item.
        name: name of the problem.
    """
    first = ~table["item"].duplicated().to_numpy()
    ids = IdMap(table["item"][first])
    sentences = Items(ids, pd.DataFrame({"text": item_texts[first].to_numpy(object)}), {"text": "text"})
    texts = dict(zip(table["question"], question_texts, strict=True))
    items, questions = experiments.described(sentences, texts, "text")
    pairs = Interactions.from_frame(table, user="question", item="item", users=questions.users, items=items.ids)
    part = experiments.named_parts(table["part"])
    right = table["label"].to_numpy(float) > 0
    answers = {key: pairs.select(np.flatnonzero(right & (part == key))) for key in experiments.SPLIT_PARTS}

    for key in ("valid", "test"):
        if len(both := np.intersect1d(pairs.user[part == "train"], pairs.user[part == key])):
            raise InputError(
                f"{questions.users.take(both[:1])[0]!r} is asked in train and in {key}; give each question to one part"
            )

    # A question's own text is training data only if the question is; the others bring theirs as their history.
    in_train = np.zeros(len(questions.users), bool)
    in_train[answers["train"].user] = True
    train = questions.select(in_train[questions.user]).concat(answers["train"])
    valid, test = (IdMap(items.ids.take(np.unique(pairs.item[part == key]))) for key in ("valid", "test"))
    split = Split(train, answers["valid"], answers["test"], questions, questions, valid, test, name)

    return Problem(name, items, split, _RANKING_METRICS, target="items", candidates=pairs)


def windows(passage: str, *, longest: int = 8) -> list[tuple[int, int]]:
    """(begin, end) character offsets of every span of up to `longest` words: the candidates for an answer.

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
    """The problem of finding the span of a passage that answers a question: `answer_selection` with spans as items.

    A span is encoded in context: its vector is the mean of its token states within the passage. Spans beyond the
    encoder's maximum length have no vector and rank last. Item ids are (passage, begin, end).

    Args:
        records: one row per question and candidate span; `windows` lists candidates.
        question: name of the column of questions.
        passage: name of the column of passages.
        begin: name of the column with the offset of the span's first character in the passage.
        end: name of the column with the offset after its last character.
        label: name of the column that is 1 or True if the span answers the question.
        part: name of the column of "train", "valid" (or "dev", "val") and "test".
        encoder: encoder of passages and questions; all-MiniLM-L6-v2 by default.
        name: name of the problem.
    """
    table = _columns(records, question=question, passage=passage, begin=begin, end=end, label=label, part=part)
    ids = list(zip(table["passage"], table["begin"].astype(int), table["end"].astype(int), strict=True))
    table["item"] = ids
    texts = pd.Series([text[first:last] for text, first, last in ids])
    problem = _candidates(table, table["question"], texts, name)

    # Ids of questions are pairs, ("about", question): a question is the span that covers its whole text.
    encoder = SentenceText(column="text") if encoder is None else encoder
    items = zip(problem.items.ids.ids, problem.items.columns["text"], strict=True)
    spans = [id if len(id) == 3 else (text, 0, len(text)) for id, text in items]
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
    """The problem of retrieving a sentence's translation: source sentences are users, and target sentences are items.

    The translation is retrieved among all target sentences of the part. To generate one instead, train
    `transfer.Translator` on `pairs` of the problem.

    Args:
        records: one row per sentence pair.
        source: name of the column of source sentences.
        target: name of the column of target sentences.
        part: name of the column of "train", "valid" (or "dev", "val") and "test".
        encoders: encoders of the column "text"; all-MiniLM-L6-v2 by default.
        name: name of the problem.
    """
    table = _columns(records, source=source, item=target, part=part).assign(label=1)
    table["question"] = np.arange(len(table))  # a source sentence may occur with several translations
    problem = replace(_candidates(table, table["source"], table["item"], name), candidates=None)

    return replace(problem, encoders=_encoders(encoders, problem.items))


def pairs(problem: Problem, part: Literal["train", "valid", "test"]) -> Pairs:
    """The source and target sentences of one part of a `translation` problem, in the order of its records."""
    text = problem.items.columns["text"].to_numpy(object)
    sources = problem.split.test_history  # one event per source sentence, with its own text
    source_text = np.empty(len(sources.users), object)
    source_text[sources.user] = text[problem.items.ids.positions(sources.items.ids)[sources.item]]

    events: Interactions = getattr(problem.split, part)
    events = events.select(~np.isin(events.item, sources.item))
    target = problem.items.ids.positions(events.items.ids)[events.item]
    order = np.argsort(events.user, kind="stable")

    return Pairs(source_text[events.user[order]].tolist(), text[target[order]].tolist())


def _labelled(texts: pd.DataFrame | Sequence[str], labels: Sequence[Any]) -> tuple[Items, Interactions]:
    frame = texts.reset_index(drop=True) if isinstance(texts, pd.DataFrame) else pd.DataFrame({"text": list(texts)})
    items = Items(IdMap(np.arange(len(frame))), frame, dict.fromkeys(frame.columns, "text"))
    return items, Interactions.from_labels(labels, items.ids)


def _encoders(encoders: Sequence[Encoder] | None, items: Items) -> Sequence[Encoder]:
    return [SentenceText(column=items.of_kind("text"))] if encoders is None else encoders


def _columns(records: pd.DataFrame, **names: str) -> pd.DataFrame:
    """A copy of the named columns under the keywords' names."""
    if missing := [name for name in names.values() if name not in records.columns]:
        raise InputError(f"the records have no column {missing[0]!r}; they have {list(records.columns)}")

    return pd.DataFrame({keyword: records[name].to_numpy() for keyword, name in names.items()})
