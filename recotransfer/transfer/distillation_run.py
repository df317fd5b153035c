"""What every distillation shares: the training data, the teacher's vectors, and a training run that resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import IdMap, Items
from recotransfer.encoders import Encoder, encode_items
from recotransfer.encoders.base import one_or_many
from recotransfer.errors import require
from recotransfer.transfer.training import TrainingRun, in_batches, lengths

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Float = NDArray[np.float32]
_HELD_OUT, _MOST_HELD, _FEWEST = 0.05, 1000, 20  # share held out, at most so many; none of fewer values than the last
_PATIENCE, _WARMUP, _CLIP = 3, 0.1, 1.0  # epochs, share of the training, greatest gradient norm
AMONG = 16  # batches among which values are sorted by text length or by group
_RELATION = 0.1  # brings the relation loss, some ten times the cosine loss, to the same scale
TEACHER = "teacher"  # subfolder that caches the teacher's vectors


class RunSettings(Protocol):
    """The settings of a tuner that a run reads."""

    folder: str | Path
    epochs: int
    batch_size: int
    learning_rate: float
    relation: float
    seed: int


@dataclass(frozen=True)
class Lesson:
    """What the student learns from.

    Attributes:
        values: n contents.
        targets: (n, dim) the teacher's vectors, of unit length.
        soft: (n, labels) soft labels, if any.
        train, valid: positions of the training values, which may repeat, and of the held-out ones.
        groups: (n,) group of each value; values of a group share batches. None batches texts by length.
        temperature: at which `soft` was softened.
        label_weight: weight of the loss on soft labels.
    """

    values: Sequence[Any]
    targets: Float
    soft: Float | None
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    temperature: float = 1.0
    label_weight: float = 0.0


def teacher_vectors(encoder: Encoder, texts: Sequence[str], cache: Path) -> Float:
    """(texts, dim) the encoder's vectors, zeros where it cannot read a text."""
    first, *others = one_or_many(encoder.column)
    table = pd.DataFrame({first: list(texts), **dict.fromkeys(others)})
    items = Items(IdMap(np.arange(len(texts))), table, dict.fromkeys((first, *others), "text"))
    return encode_items(items, encoder, cache=cache).embeddings.vectors


def train_and_held_out(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and held-out positions, the same whatever the settings."""
    held = min(_MOST_HELD, int(_HELD_OUT * count)) if count >= _FEWEST else 0
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


class DistillationRun(TrainingRun):
    """One distillation run: student, heads, optimizer and progress, all of which the checkpoint stores.

    Args:
        module: the student's network, trained in place.
        collate: turns values into the network's inputs.
        lesson: what to learn from.
        tuner: its settings; the folder is the run's.
        settings: everything that determines the result, as plain JSON.
        half: compute in bfloat16.
    """

    def __init__(
        self,
        module: Module,
        collate: Callable[[Sequence[Any]], Mapping[str, Any]],
        lesson: Lesson,
        tuner: RunSettings,
        settings: dict[str, Any],
        *,
        half: bool = False,
    ) -> None:
        torch = require("torch")

        super().__init__(tuner.folder, settings)
        self.collate = collate
        self.lesson = lesson
        self.tuner = tuner
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.half = half
        self.module = module.to(self.device).eval()  # no dropout: the teacher's vectors are exact
        width = self._embed(np.arange(1)).shape[1]

        with torch.random.fork_rng():
            torch.manual_seed(tuner.seed)
            self.heads = torch.nn.ModuleDict()
            if width != lesson.targets.shape[1]:
                self.heads["map"] = torch.nn.Linear(width, lesson.targets.shape[1], bias=False)

            if lesson.soft is not None:
                self.heads["labels"] = torch.nn.Linear(width, lesson.soft.shape[1])

        self.heads.to(self.device)
        weights = {f"module/{name}": value for name, value in self.module.named_parameters()}
        self.weights = {**weights, **{f"head/{name}": value for name, value in self.heads.named_parameters()}}
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr=tuner.learning_rate, fused=True)

    def train(self) -> dict[str, Any]:
        """Train until validation stops improving, resuming from a checkpoint if there is one; returns the report."""
        if not self.resume():
            self.finish_epoch(None, self._score())  # the untrained student, kept if no epoch beats it

        while self.epoch < self.tuner.epochs and self.worse < _PATIENCE:
            start = time.monotonic()
            rng = np.random.default_rng([self.tuner.seed, self.epoch])
            groups = self.lesson.groups
            # Renumbering the groups puts different ones into the same batch each epoch.
            keys = lengths(self.lesson.values) if groups is None else rng.permutation(groups.max() + 1)[groups]
            batches = in_batches(self.lesson.train, self.tuner.batch_size, AMONG, keys, rng)
            loss = 0.0
            for n, batch in enumerate(batches):
                done = (self.epoch + n / len(batches)) / self.tuner.epochs
                for group in self.optimizer.param_groups:
                    group["lr"] = self.tuner.learning_rate * min((done + 1e-3) / _WARMUP, 1.0) * (1 - done)

                loss += self._learn(batch)

            self.epoch, self.step = self.epoch + 1, self.step + len(batches)
            self.spent += time.monotonic() - start
            self.finish_epoch(loss / len(batches), self._score())
            self.save()

        return self.report(values=len(self.lesson.train), held_out=len(self.lesson.valid))

    def _embed(self, items: NDArray[np.int64]) -> Tensor:
        """(items, width) the student's vectors."""
        torch = require("torch")

        inputs = self.collate([self.lesson.values[i] for i in items])
        batch = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self.module(batch).pooled.float()

    def _unit(self, rows: Tensor) -> Tensor:
        """The student's vectors in the teacher's space, of unit length."""
        torch = require("torch")

        return torch.nn.functional.normalize(self.heads["map"](rows) if "map" in self.heads else rows, dim=1)

    def _learn(self, items: NDArray[np.int64]) -> float:
        """Take one optimizer step on a batch; returns the loss before the step."""
        torch = require("torch")

        rows = self._embed(items)
        student, teacher = self._unit(rows), torch.from_numpy(self.lesson.targets[items]).to(self.device)
        loss = (1 - (student * teacher).sum(dim=1)).mean()
        if self.tuner.relation:
            cosines = teacher @ teacher.T
            error = (student @ student.T - cosines).square().sum() / cosines.square().sum()
            loss = loss + self.tuner.relation * _RELATION * error

        if self.lesson.soft is not None:
            temperature = self.lesson.temperature
            predicted = torch.log_softmax(self.heads["labels"](rows) / temperature, dim=1)
            soft = torch.from_numpy(self.lesson.soft[items]).to(self.device)
            divergence = torch.nn.functional.kl_div(predicted, soft, reduction="batchmean")
            # Gradients shrink by temperature squared; the factor restores them (Hinton et al., 2015).
            loss = loss + self.lesson.label_weight * temperature**2 * divergence

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), _CLIP)
        self.optimizer.step()

        return float(loss.detach())

    def _score(self) -> float | None:
        """Mean cosine of student and teacher over the held-out values; None where there are none."""
        torch = require("torch")

        held, size = self.lesson.valid, 4 * self.tuner.batch_size
        if not len(held):
            return None

        total = 0.0
        with torch.inference_mode():
            for at in range(0, len(held), size):
                student = self._unit(self._embed(held[at : at + size])).cpu().numpy()
                total += float((student * self.lesson.targets[held[at : at + size]]).sum())

        return round(total / len(held), 6)
