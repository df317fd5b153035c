"""Probe of frozen embeddings: a classifier of items by label, where the labels are users."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.base import Recommender
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt

_STATE = ("mean", "scale", "outer", "bias")
_CONSTANT = 1e-6  # relative standard deviation below which a column counts as constant and is ignored
_LEAST_FOR_STOPPING = 500  # examples from which a tenth is held out for early stopping of the hidden layer


class Probe(Recommender):
    """Logistic regression of labels on item vectors: the linear probe of a frozen encoder (Alain and Bengio, 2016).

    A label is a user, and its items are those with that label. If every labelled item has one label, the regression is
    multinomial, so that the probabilities of an item sum to 1; otherwise each label has its own binary regression.
    Items without labels are treated as unknown, not as negatives. Scores are probabilities. New labels need a refit;
    `RidgeProfiles` and `ContentProfiles` can rank for new users, and so for new labels, without one.

    Args:
        reg: ridge penalty on the weights of the standardised vectors, relative to the log loss summed over items.
        hidden: width of a hidden layer; None for a linear model.
        standardise: divide each column of the vectors by its standard deviation; leave it off for TF-IDF, whose columns
            are weighted already.
        block: name of the one modality to read, such as "text", of vectors that hold several; None for all.
        temperature: divisor of the logits (Guo et al., "On calibration of modern neural networks", 2017);
            `experiments.run(calibrate=True)` fits it to held-out items.
        seed: random seed of the hidden layer.

    Attributes:
        labels_: positions of the users with at least one labelled item that has content.
        exclusive_: whether every labelled item has exactly one label.
        blocks_: (name, width) of the modalities side by side in the vectors.
    """

    needs_items: ClassVar[bool] = True
    scores_new_items: ClassVar[bool] = True
    scores_new_users: ClassVar[bool] = False
    gives_probabilities: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"reg": (0.01, 10_000.0)}
    source_of_scores: ClassVar[str] = "content"

    def __init__(
        self,
        *,
        reg: NonNegative = 10.0,
        hidden: PositiveInt | None = None,
        standardise: bool = True,
        block: str | None = None,
        temperature: Positive = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.reg = reg
        self.hidden = hidden
        self.standardise = standardise
        self.block = block
        self.temperature = temperature
        self.seed = seed

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        assert items is not None  # fit checks needs_items
        self.vectors_, self.present_ = items.vectors, items.has_content
        self.blocks_ = items.blocks
        labels = sparse.csr_array(events.binary_matrix().T)
        rows = np.flatnonzero((np.diff(labels.indptr) > 0) & self.present_)
        if not len(rows):
            raise InputError("no labelled item has content to learn from; check the encoder's report for what failed")

        self.labels_ = np.flatnonzero(np.bincount(labels[rows].indices, minlength=len(events.users)))
        if len(self.labels_) < 2:
            raise InputError(
                f"Probe needs at least two labels that have items with content, got {len(self.labels_)}; "
                "add labelled items, or use RidgeProfiles"
            )

        has_label = labels[rows][:, self.labels_].toarray() > 0
        self.exclusive_ = bool((has_label.sum(axis=1) == 1).all())
        self._learn(self._read_columns(items.vectors)[rows], has_label)

    def _read_columns(self, vectors: Float) -> Float:
        """(n, width) the columns of the vectors that the model reads."""
        if self.block is None:
            return vectors

        names = [name for name, _ in self.blocks_]
        if self.block not in names:
            raise InputError(f"Probe: block is {self.block!r}, but the vectors hold {', '.join(names)}; choose one of "
                             "these, or give its encoder too")  # fmt: skip

        ends = np.cumsum([width for _, width in self.blocks_])
        at = names.index(self.block)

        return vectors[:, ends[at] - self.blocks_[at][1] : ends[at]]

    def _learn(self, x: Float, has_label: NDArray[np.bool_]) -> None:
        """Fit to vectors `x` (n, dim) and labels `has_label` (n, labels) bool."""
        spread = x.std(axis=0) if self.standardise else np.ones(x.shape[1])
        self.mean_ = x.mean(axis=0).astype(np.float32)
        self.scale_ = np.where(spread > _CONSTANT * max(float(spread.max()), 1e-12), spread, np.inf).astype(np.float32)
        z = (x - self.mean_) / self.scale_
        if self.hidden is None:
            self.inner_ = None
            self.outer_, self.bias_ = self._linear(z, has_label)
            return

        ConvergenceWarning = require("sklearn.exceptions").ConvergenceWarning
        MLPClassifier = require("sklearn.neural_network").MLPClassifier

        # Early stopping holds out a tenth, and both parts need an example of every label.
        stopping = len(z) >= _LEAST_FOR_STOPPING and has_label.sum(axis=0).min() > 1
        net = MLPClassifier(
            (self.hidden,), alpha=self.reg, batch_size=min(256, len(z)), max_iter=200, random_state=self.seed,
            early_stopping=stopping, n_iter_no_change=5,
        )  # fmt: skip

        # It need not converge within 200 epochs, so scikit-learn's warning is suppressed.
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            net.fit(z, has_label.argmax(axis=1) if self.exclusive_ else has_label)

        (inner, outer), (inner_bias, bias) = net.coefs_, net.intercepts_
        self.inner_ = np.vstack([inner, inner_bias]).astype(np.float32)
        self.outer_, self.bias_ = (
            _two_class_logits(outer, bias) if has_label.shape[1] == 2 and self.exclusive_ else (outer, bias)
        )

    def _linear(self, z: Float, has_label: NDArray[np.bool_]) -> tuple[Float, Float]:
        """Weights (dim, labels) and intercepts (labels,) of logistic regressions on the standardised vectors `z`."""
        LogisticRegression = require("sklearn.linear_model").LogisticRegression

        z64 = z.astype(np.float64)  # in float32 the line search fails for large penalties

        def fitted(target: NDArray[Any]) -> tuple[Float, Float]:
            model = LogisticRegression(C=1 / max(self.reg, 1e-12), max_iter=500).fit(z64, target)
            return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)

        if self.exclusive_:
            weights, bias = fitted(has_label.argmax(axis=1))
            return _two_class_logits(weights, bias) if has_label.shape[1] == 2 else (weights, bias)

        columns = []
        for label in has_label.T:
            if label.all():  # without negatives there is nothing to fit: a constant logit of 10, almost certain
                columns.append((np.zeros((z.shape[1], 1), np.float32), np.full(1, 10, np.float32)))
            else:
                columns.append(fitted(label))

        return np.hstack([w for w, _ in columns]), np.concatenate([b for _, b in columns])

    # -- results -------------------------------------------------------------------------------------------------------

    def _logits(self, x: Float) -> Float:
        """(n, labels) logits of vectors `x` (n, dim), before the temperature."""
        z = (x - self.mean_) / self.scale_
        if self.inner_ is not None:
            z = np.maximum(z @ self.inner_[:-1] + self.inner_[-1], 0)

        return np.asarray(z @ self.outer_ + self.bias_, np.float32)

    def _label_probabilities(self, vectors: Float, users: NDArray[np.int64]) -> Float:
        """(n, users) probability of each label at the positions `users`; 0 for labels without examples."""
        p = _probabilities(self._logits(self._read_columns(vectors)) / self.temperature, self.exclusive_)
        place = np.full(len(self.events_.users), -1)
        place[self.labels_] = np.arange(len(self.labels_))
        at = place[users]
        return np.where(at >= 0, p[:, at], 0).astype(np.float32)

    def _scores(self, events: Interactions) -> Float:
        return np.ascontiguousarray(
            self._label_probabilities(self.vectors_, self.events_.users.positions(events.users.ids)).T
        )

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        if not self.present_.all():  # probabilities of items without content mean nothing
            mask = self.present_ if mask is None else mask & self.present_

        return super()._rank(events, k, exclude, mask)

    def _with_items(self, items: Embeddings) -> Self:
        return self  # any vectors can be scored, in the catalogue or not

    def _item_scores(self, items: Embeddings, users: NDArray[np.int64]) -> Float:
        return self._label_probabilities(items.vectors, users)

    def _content(self) -> Embeddings:
        known = IdMap(self.catalogue_.take(np.arange(len(self.vectors_))))
        return Embeddings(known, self.vectors_, present=self.present_, blocks=self.blocks_)

    def _extend(self, items: Embeddings) -> None:
        self.vectors_ = np.concatenate([self.vectors_, items.vectors])
        self.present_ = np.concatenate([self.present_, items.has_content])

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        for name in _STATE + (("inner",) if self.inner_ is not None else ()):
            writer.array(name, getattr(self, f"{name}_"))

        for name in ("vectors", "present", "labels"):
            writer.array(name, getattr(self, f"{name}_"))

        writer.json("probe", {"exclusive": self.exclusive_, "blocks": self.blocks_})

    def _read(self, artifact: Artifact) -> None:
        for name in (*_STATE, "vectors", "present", "labels"):
            setattr(self, f"{name}_", artifact.array(name))

        self.inner_ = artifact.array("inner") if "inner.npy" in artifact else None
        facts = artifact.json("probe")
        self.exclusive_ = facts["exclusive"]
        blocks = facts.get("blocks", [("content", self.vectors_.shape[1])])  # earlier versions did not save them
        self.blocks_ = tuple((name, width) for name, width in blocks)


def _two_class_logits(weights: NDArray[Any], bias: NDArray[Any]) -> tuple[Float, Float]:
    """Weights and bias for two columns of logits from those of a binary model; the first logit is always 0."""
    return (
        np.hstack([np.zeros_like(weights), weights]).astype(np.float32),
        np.concatenate([np.zeros_like(bias), bias]).astype(np.float32),
    )


def _probabilities(logits: Float, exclusive: bool) -> Float:
    """Softmax over the labels if they are mutually exclusive, otherwise a sigmoid for each."""
    from scipy.special import expit, softmax

    return np.asarray(softmax(logits, axis=1) if exclusive else expit(logits), np.float32)
