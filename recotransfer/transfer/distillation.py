"""Distillation: a small encoder learns to give the vectors of a large one; the large one is asked once per item."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Embeddings, Interactions, Items
from recotransfer.encoders import TrainableEncoder, encode_items, encoder_from_spec, encoder_spec
from recotransfer.encoders.precision import computes_in_bfloat16
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import digest_of_events
from recotransfer.numerics.vectors import unit_rows
from recotransfer.recommenders import Probe
from recotransfer.settings import NonNegative, NonNegativeInt, Positive, PositiveInt, check_settings
from recotransfer.transfer.base import Tuner
from recotransfer.transfer.distillation_run import (
    TEACHER,
    DistillationRun,
    Lesson,
    train_and_held_out,
)
from recotransfer.transfer.training import digest_of_content, ended, model_of

Float = NDArray[np.float32]


class Distil(Tuner):
    """A smaller encoder that imitates the one it is given, for text and pictures alike.

    The student's vectors are drawn to the teacher's (one minus their cosine), as are the cosines between all pairs of a
    batch (squared difference, as a share of the teacher's squares): relational knowledge distillation (Park et al.,
    2019; Tung and Mori, "Similarity-preserving knowledge distillation", 2019). With `labels` a head on the student also
    gives the probabilities that a linear probe on the teacher's vectors has for the users of the relations (of items
    with several users, the shares of each), all softened by `temperature` (Hinton et al., "Distilling the knowledge in
    a neural network", 2015). A student of another width learns through a linear map that is dropped afterwards.

    A twentieth of the items, at most 1000, is held out; the weights with the highest mean cosine on them are kept, and
    three epochs without a better one end the training. The relations are read for `labels` alone.

    Args:
        folder: where the teacher's vectors, the checkpoint, the report and the student go; a killed run goes on from
            its last epoch, a finished one is only read. It must stay while the student is used.
        student: the encoder to train; None takes layers of the teacher.
        layers: how many of the teacher's layers the student keeps, evenly spaced from the first to the last.
        relation: weight of the cosines between pairs.
        labels: weight of the soft labels.
        temperature: what logits are divided by on both sides of the soft labels.
        epochs: at most so many passes over the items.
        learning_rate: Adam's, after a linear warm-up and before a linear decay.
        batch_size: items of a step.
        seed: random seed.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        student: TrainableEncoder | None = None,
        layers: PositiveInt = 3,
        relation: NonNegative = 1.0,
        labels: NonNegative = 0.0,
        temperature: Positive = 2.0,
        epochs: PositiveInt = 10,
        learning_rate: Positive = 3e-4,
        batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.folder = folder
        self.student = student
        self.layers = layers
        self.relation = relation
        self.labels = labels
        self.temperature = temperature
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.seed = seed

    def tune(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> TrainableEncoder:
        """The student, whose model lies below `folder`; `report_` tells the curve and which epoch was kept.

        Raises:
            InputError: settings that cannot be, no items to learn from, or a folder of another run.
        """
        check_settings(self)
        folder, student = Path(self.folder), self.student or encoder
        names = ("layers", "relation", "labels", "temperature", "epochs", "learning_rate", "batch_size", "seed")
        settings = {
            **{name: getattr(self, name) for name in names},
            "teacher": encoder.name,
            "student": None if self.student is None else self.student.name,
            "items": digest_of_content(items, *(e for e in (encoder, self.student) if e is not None)),
            "relations": digest_of_events(relations) if self.labels else None,
        }
        target = folder / f"{model_of(student)}-student"
        if report := ended(folder, target, settings):
            self.report_ = report
            return cast(TrainableEncoder, encoder_from_spec({**encoder_spec(student), "model": str(target)}))

        taught = encode_items(items, encoder, cache=folder / TEACHER).embeddings
        content = student.values(items)
        rows = [row for row in np.flatnonzero(taught.has_content) if content[row] is not None]
        if len(rows) < 2:
            raise InputError(f"{len(rows)} items have content to learn from; give more, see the encoder's report")

        module = student.module()
        if self.student is None:
            _keep_layers(module, self.layers)

        soft = _soft_labels(taught, relations, self.temperature)[rows] if self.labels else None
        lesson = Lesson(
            [content[row] for row in rows],
            unit_rows(taught.vectors[rows]),
            soft,
            *train_and_held_out(len(rows)),
            temperature=self.temperature,
            label_weight=self.labels,
        )
        run = DistillationRun(module, student.collate, lesson, self, settings, half=computes_in_bfloat16())
        self.report_ = run.train()
        made = student.saved(run.best_module(), target)
        run.finish(self.report_)
        shutil.rmtree(folder / TEACHER, ignore_errors=True)

        return made


def _soft_labels(taught: Embeddings, relations: Interactions, temperature: float) -> Float:
    """(items, labels that items hold) what a linear probe says of the teacher's vectors, softened; each row sums to 1.

    Where every item has one label these are probabilities at that temperature. Where some have several, the probe tells
    each label's own probability, and a row is the labels' shares of them: which labels, but not how many.
    """
    probe = Probe().fit(relations, taught)
    found = probe.label(taught, k=len(probe.labels_), users=relations.users.take(probe.labels_))
    shares = np.zeros((len(taught.ids), len(probe.labels_)))
    rows = np.flatnonzero(taught.has_content)
    shares[rows[:, None], np.searchsorted(probe.labels_, found.positions[rows])] = found.scores[rows]
    soft = np.maximum(shares, np.finfo(np.float32).tiny) ** (1 / temperature)

    return np.asarray(soft / soft.sum(axis=1, keepdims=True), np.float32)


def _keep_layers(module: Any, count: int) -> None:
    """Leave `count` layers in a network, evenly spaced from the first to the last; its configuration says so."""
    torch = require("torch")

    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList)]
    name, layers = max(lists, key=lambda pair: (len(pair[1]), "vision" in pair[0]), default=("", []))
    shapes = {tuple(tuple(weight.shape) for weight in layer.parameters()) for layer in layers}
    if len(shapes) != 1:
        raise InputError("the teacher has no row of layers of one shape to choose from; give Distil(student=...)")
    if not count < len(layers):
        raise InputError(f"layers is {count} and the teacher has {len(layers)}; keep fewer")

    kept = np.round(np.linspace(0, len(layers) - 1, count)).astype(int) if count > 1 else [0]
    above, _, own = name.rpartition(".")
    setattr(module.get_submodule(above), own, torch.nn.ModuleList([layers[i] for i in kept]))

    for other, part in module.named_modules():
        config = getattr(part, "config", None)
        if name.startswith(f"{other}.") and getattr(config, "num_hidden_layers", None) == len(layers):
            part.config.num_hidden_layers = count
