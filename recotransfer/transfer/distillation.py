"""Distillation: a small encoder learns to reproduce the vectors of a large one, which encodes each item only once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

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

if TYPE_CHECKING:
    from torch.nn import Module

Float = NDArray[np.float32]


class Distil(Tuner):
    """Distils a text or image encoder, the teacher, into a smaller one, the student.

    The loss is one minus the cosine of student and teacher vectors, plus the squared error of the cosines between all
    pairs of the batch, relative to the teacher's: relational knowledge distillation (Park et al., 2019; Tung and Mori,
    "Similarity-preserving knowledge distillation", 2019). With `labels` a head on the student also learns the
    probabilities that a linear probe on the teacher's vectors gives the users of the relations (normalised over users
    where items have several), softened by `temperature` (Hinton et al., "Distilling the knowledge in a neural
    network", 2015). A student whose vectors have another width is trained through a linear map that is then discarded.

    A twentieth of the items, at most 1000, is held out; the weights with the highest mean cosine on them are kept, and
    training stops after three epochs without improvement. The relations are used for `labels` only.

    Args:
        folder: for the teacher's vectors, the checkpoint, the report and the student. An interrupted run resumes from
            its last epoch; a finished run is loaded from it. Keep it while the student is in use.
        student: the encoder to train; None starts from some of the teacher's own layers.
        layers: number of the teacher's layers that the student then keeps, evenly spaced from the first to the last.
        relation: weight of the loss on cosines between pairs.
        labels: weight of the loss on soft labels.
        temperature: divides the logits of teacher and student in the loss on soft labels.
        epochs: maximum number of passes over the items.
        learning_rate: peak learning rate of Adam, with linear warm-up and decay.
        batch_size: items per step.
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
        """The student, with its model saved under `folder`; `report_` has the learning curve and the best epoch.

        Raises:
            InputError: invalid settings, no items to learn from, or a folder that holds another run.
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

        # The cache lets a run that was interrupted here go on where the teacher stopped.
        taught = encode_items(items, encoder, cache=folder / TEACHER).embeddings
        content = student.values(items)
        rows = [row for row in np.flatnonzero(taught.has_content) if content[row] is not None]
        if len(rows) < 2:
            raise InputError(f"items with content to learn from: {len(rows)}; give more, see the encoder's report")

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
        distilled = student.saved(run.best_module(), target)
        run.finish(self.report_)
        shutil.rmtree(folder / TEACHER, ignore_errors=True)

        return distilled


def _soft_labels(taught: Embeddings, relations: Interactions, temperature: float) -> Float:
    """(items, labels) probabilities of a linear probe on the teacher's vectors, softened; each row sums to 1.

    Columns are the labels that some item has. Where every item has exactly one, rows are probabilities at that
    temperature. Where some have several, the probe gives each label a probability of its own, and normalising keeps
    which labels an item has but not how many.
    """
    probe = Probe().fit(relations, taught)
    predicted = probe.label(taught, k=len(probe.labels_), users=relations.users.take(probe.labels_))
    shares = np.zeros((len(taught.ids), len(probe.labels_)))
    rows = np.flatnonzero(taught.has_content)
    shares[rows[:, None], np.searchsorted(probe.labels_, predicted.positions[rows])] = predicted.scores[rows]
    # Raising a probability to 1 / temperature divides its logit by the temperature, up to the normalisation.
    soft = np.maximum(shares, np.finfo(np.float32).tiny) ** (1 / temperature)

    return np.asarray(soft / soft.sum(axis=1, keepdims=True), np.float32)


def _keep_layers(module: Module, count: int) -> None:
    """Keep `count` layers of a network, evenly spaced from the first to the last, and update its configuration."""
    torch = require("torch")

    lists = [(name, inner) for name, inner in module.named_modules() if isinstance(inner, torch.nn.ModuleList)]
    name, layers = max(lists, key=lambda pair: (len(pair[1]), "vision" in pair[0]), default=("", []))
    shapes = {tuple(tuple(weight.shape) for weight in layer.parameters()) for layer in layers}
    if len(shapes) != 1:
        raise InputError("the teacher has no row of layers of one shape to choose from; give Distil(student=...)")
    if not count < len(layers):
        raise InputError(f"layers is {count} and the teacher has {len(layers)}; keep fewer")

    kept = np.round(np.linspace(0, len(layers) - 1, count)).astype(int) if count > 1 else [0]
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, torch.nn.ModuleList([layers[i] for i in kept]))

    # The number of layers is written in the configuration of each module around them.
    for outer, holder in module.named_modules():
        config = getattr(holder, "config", None)
        if name.startswith(f"{outer}.") and getattr(config, "num_hidden_layers", None) == len(layers):
            holder.config.num_hidden_layers = count
