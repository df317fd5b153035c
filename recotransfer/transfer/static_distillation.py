"""Distillation of a text encoder into a table of word vectors: `DistilStatic`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions, Items
from recotransfer.encoders import Encoder, StaticText
from recotransfer.encoders.static import Vocabulary, words, write_static
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import digest
from recotransfer.numerics.vectors import unit_rows
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt, check_settings
from recotransfer.transfer.base import Tuner
from recotransfer.transfer.distillation_run import (
    AMONG,
    TEACHER,
    DistillationRun,
    Float,
    Lesson,
    teacher_vectors,
    train_and_held_out,
)
from recotransfer.transfer.training import ended, model_of

_GROUP = 32  # similar texts per group; a batch consists of several groups
# The initial table: ridge penalty, conjugate gradient steps, and weight of single words against texts.
_RIDGE, _SWEEPS, _ALONE = 0.3, 20, 0.5


class DistilStatic(Tuner):
    """Distils any text encoder into a `StaticText`, which is hundreds of times as fast.

    The vocabulary is the words of the items' texts and the word pieces of the teacher's tokenizer. As in Model2Vec
    (Tulkens and van Dongen, 2024) the teacher's vectors are reduced by PCA on the texts. The table is initialised by
    ridge regression of the teacher's vectors on bags of words, of the texts and of each word alone. Table and layers
    are then trained by the losses of `Distil`, on the texts and on synthetic ones that join the beginning of one text
    to the end of another. Batches consist of groups of texts that the teacher finds similar, since recommendations
    depend on the cosines between near neighbours. Validation, early stopping and resuming are those of `Distil`.

    All texts of `items` are used, with or without relations; leave an item out of `items` to leave out its text. The
    relations are not used.

    Args:
        folder: as in `Distil`.
        dim: width of the student's vectors; at most the teacher's.
        width: hidden units that read pairs of neighbouring words.
        hidden: hidden units of the layer over the sums.
        made_up: number of synthetic texts.
        relation, epochs, learning_rate, batch_size, seed: as in `Distil`.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        dim: PositiveInt = 384,
        width: PositiveInt = 384,
        hidden: PositiveInt = 512,
        made_up: NonNegativeInt = 150_000,
        relation: NonNegative = 5.0,
        epochs: PositiveInt = 8,
        learning_rate: Positive = 2e-3,
        batch_size: PositiveInt = 512,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.folder = folder
        self.dim = dim
        self.width = width
        self.hidden = hidden
        self.made_up = made_up
        self.relation = relation
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.seed = seed

    def tune(self, encoder: Encoder, items: Items, relations: Interactions | None = None) -> StaticText:
        """The student, with its model saved under `folder`; `report_` has the learning curve and the best epoch.

        Raises:
            InputError: invalid settings, no texts to learn from, or a folder that holds another run.
        """
        check_settings(self)
        names = ("dim", "width", "hidden", "made_up", "relation", "epochs", "learning_rate", "batch_size", "seed")
        texts = list(dict.fromkeys(text for text in encoder.values(items) if text is not None))
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"texts to learn from: {len(texts)}; give a text encoder and items with text in its columns"
            )

        settings = {
            **{name: getattr(self, name) for name in names},
            "teacher": encoder.name,
            "texts": digest(np.array(texts, object)),
        }
        folder = Path(self.folder)
        target = folder / f"{model_of(encoder)}-static"
        if report := ended(folder, target, settings):
            self.report_ = report
            return StaticText(model=target, column=encoder.column)

        # The teacher encodes the texts, the synthetic texts and every word alone, in this order.
        train, valid = train_and_held_out(len(texts))
        train_texts = [texts[i] for i in train]
        entries = _entries(encoder, texts)
        lone_words = [entry.removeprefix("##") for entry in entries]
        synthetic = crossed(train_texts, self.made_up, self.seed)
        values = [*texts, *synthetic, *lone_words]
        vectors = teacher_vectors(encoder, values, folder / TEACHER)
        targets = _principal(vectors, len(texts), self.dim)
        begin, end = len(texts) + len(synthetic), len(values)

        initial = self._initial(entries, train_texts, targets[train], targets[begin:end])
        write_static(folder / "begin", entries, initial)
        student = StaticText(model=folder / "begin", column=encoder.column)
        order = np.concatenate([train, train, np.arange(len(texts), begin)])  # real texts count twice
        lesson = Lesson(values, targets, None, order, valid, _groups(targets, order, self.batch_size))
        run = DistillationRun(student.module(), student.collate, lesson, self, settings)
        self.report_ = run.train()
        distilled = student.saved(run.best_module(), target)
        run.finish(self.report_)

        for name in ("begin", TEACHER):
            shutil.rmtree(folder / name, ignore_errors=True)

        return distilled

    def _initial(self, entries: Sequence[str], texts: Sequence[str], targets: Float, alone: Float) -> dict[str, Float]:
        """Initial weights: the table is a ridge regression, and the layer over it contributes nothing yet."""
        found, start = Vocabulary(entries).rows(texts)
        count = np.diff(start)
        share = np.repeat(1 / np.sqrt(np.maximum(count, 1)), count).astype(np.float32)
        bags = sparse.csr_array((share, found, start), shape=(len(texts), len(entries)))
        lone = sparse.diags_array(np.full(len(entries), _ALONE, np.float32))
        both = sparse.csr_array(sparse.vstack([bags, lone]))
        table = regression(both, np.vstack([targets, _ALONE * alone]), _RIDGE, _SWEEPS)
        rng, dim = np.random.default_rng(self.seed), targets.shape[1]

        def random_matrix(rows: int, columns: int) -> Float:
            return rng.uniform(-1, 1, (rows, columns)).astype(np.float32) / np.float32(np.sqrt(rows))

        return {
            "table": table * np.float32(np.sqrt(dim)),  # entries near 1, as the layers and Adam's steps expect
            "own": random_matrix(dim, self.width),
            "before": random_matrix(dim, self.width),
            "bias": np.zeros(self.width, np.float32),
            "in": random_matrix(dim + self.width, self.hidden),
            "in_bias": np.zeros(self.hidden, np.float32),
            "out": np.zeros((self.hidden, dim), np.float32),
            "out_bias": np.zeros(dim, np.float32),
        }


def crossed(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` synthetic texts: half join the beginning of one text to the end of another, half are a few words."""
    rng = np.random.default_rng(seed)
    split = [text.split() for text in texts]
    one, other = rng.integers(len(split), size=(2, count))
    cuts, kinds = rng.random((count, 2)), rng.random(count) < 0.5
    out = []

    for a, b, (cut, back), both in zip(one.tolist(), other.tolist(), cuts.tolist(), kinds.tolist(), strict=True):
        left, right = split[a], split[b]
        if both:
            chosen = left[: 1 + int(cut * len(left))] + right[int(back * len(right)) :]
        else:
            at = int(cut * len(left))
            chosen = left[at : at + 1 + int(back * 5)]

        out.append(" ".join(chosen))

    return out


def _entries(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """The vocabulary: words of the texts, then words and pieces of the encoder's tokenizer, without repeats."""
    found = dict.fromkeys(word for text in texts for word in words(text))
    file = Path(getattr(encoder, "folder", "")) / "tokenizer.json"
    if getattr(encoder, "folder", None) is None or not file.is_file():
        return list(found)

    # WordPiece marks pieces within a word by "##"; SentencePiece and byte-level BPE mark the first piece of a word.
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    tokens = [token if isinstance(token, str) else token[0] for token in model["vocab"]]
    marks = "▁Ġ" if any(token.startswith(("▁", "Ġ")) for token in tokens) else ""

    for token in tokens:
        inner = token[:1] not in marks if marks else token.startswith("##")
        bare = token.lstrip(marks) if marks else token.removeprefix("##")
        if words(bare) == [bare.lower()]:
            found["##" * inner + bare.lower()] = None

    return list(found)


def _principal(vectors: Float, known: int, dim: int) -> Float:
    """(n, dim) unit rows: all vectors on the principal components of the first `known` ones."""
    centre = vectors[:known].mean(axis=0)
    _, _, axes = np.linalg.svd(vectors[:known] - centre, full_matrices=False)
    return unit_rows((vectors - centre) @ axes[:dim].T)


def regression(features: sparse.csr_array, targets: Float, reg: float, sweeps: int) -> Float:
    """(columns, dim) W that minimises |features W - targets|^2 + reg |W|^2, by `sweeps` conjugate gradient steps.

    All columns of W are solved at once, with the diagonal as preconditioner.
    """
    turned = sparse.csr_array(features.T)
    scale = 1 / (np.asarray(turned.multiply(turned).sum(axis=1), np.float32).reshape(-1, 1) + reg)
    weights = np.zeros((features.shape[1], targets.shape[1]), np.float32)
    residual = turned @ targets
    step = scale * residual
    size = (residual * step).sum(axis=0)

    for _ in range(sweeps):
        image = turned @ (features @ step) + reg * step
        length = size / np.maximum((step * image).sum(axis=0), 1e-20)
        weights += length * step
        residual = residual - length * image
        scaled = scale * residual
        new = (residual * scaled).sum(axis=0)
        step = scaled + (new / np.maximum(size, 1e-20)) * step
        size = new

    return np.asarray(weights, np.float32)


def _groups(targets: Float, rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(n,) the k-means cluster of each of the teacher's vectors; a batch gets some `_GROUP` values of each it holds."""
    MiniBatchKMeans = require("sklearn.cluster").MiniBatchKMeans

    count = max(1, min(AMONG * size, len(rows)) // _GROUP)
    sample = targets[rows[:: max(1, len(rows) // 40_000)]]
    return np.asarray(MiniBatchKMeans(count, n_init=1, random_state=0).fit(sample).predict(targets), np.int64)
