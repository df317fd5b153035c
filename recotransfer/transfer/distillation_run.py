"""What distillation into any student shares: the lesson, the teacher's vectors, and a training run that resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import IdMap, Items
from recotransfer.encoders import Encoder, encode_items
from recotransfer.encoders.base import one_or_many
from recotransfer.errors import require
from recotransfer.transfer.training import TrainingRun, in_batches, lengths

Float = NDArray[np.float32]
_HELD_OUT, _MOST_HELD, _FEWEST = 0.05, 1000, 20  # share of values validated on, at most so many, none below so many
_PATIENCE, _WARMUP, _CLIP = 3, 0.1, 1.0
AMONG = 16  # batches among which texts are sorted by length, or by what they are near
_RELATION = 0.1  # the share of the cosines' squares that is missed is some ten times one minus the cosine
TEACHER = "teacher"  # folder of its vectors


class RunSettings(Protocol):
    """What a run reads of the tuner that it belongs to."""

    folder: str | Path
    epochs: int
    batch_size: int
    learning_rate: float
    relation: float
    seed: int


@dataclass(frozen=True)
class Lesson:
    """Values, the teacher's unit vectors (n, dim) and soft labels (n, labels) of them, and which are for what.

    Values of one `kin` (n,) come to one batch; of None texts of one length do. Soft labels count `label_weight`, at
    `temperature`.
    """

    values: Sequence[Any]
    targets: Float
    soft: Float | None
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    kin: NDArray[np.int64] | None = None
    temperature: float = 1.0
    label_weight: float = 0.0


def teacher_vectors(encoder: Encoder, texts: Sequence[str], cache: Path) -> Float:
    """(texts, dim) the encoder's vectors, zeros where it has none."""
    first, *others = one_or_many(encoder.column)
    table = pd.DataFrame({first: list(texts), **dict.fromkeys(others)})
    items = Items(IdMap(np.arange(len(texts))), table, dict.fromkeys((first, *others), "text"))
    return encode_items(items, encoder, cache=cache).embeddings.vectors


def train_and_held_out(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and positions held out, the same whatever the settings."""
    held = min(_MOST_HELD, int(_HELD_OUT * count)) if count >= _FEWEST else 0
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


class DistillationRun(TrainingRun):
    """One training: the student, its heads, the optimizer, and where it stands, all of it in the checkpoint."""

    def __init__(
        self,
        module: Any,
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
        own = {f"module/{name}": value for name, value in self.module.named_parameters()}
        self.weights = {**own, **{f"head/{name}": value for name, value in self.heads.named_parameters()}}
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr=tuner.learning_rate, fused=True)

    def train(self) -> dict[str, Any]:
        """Train up to the best epoch, from where a checkpoint left off; the report."""
        if not self.resume():
            self.finish_epoch(None, self._score())

        while self.epoch < self.tuner.epochs and self.worse < _PATIENCE:
            start = time.monotonic()
            rng = np.random.default_rng([self.tuner.seed, self.epoch])
            kin = self.lesson.kin
            kin = lengths(self.lesson.values) if kin is None else rng.permutation(kin.max() + 1)[kin]
            parts = in_batches(self.lesson.train, self.tuner.batch_size, AMONG, kin, rng)
            loss = 0.0
            for n, batch in enumerate(parts):
                done = (self.epoch + n / len(parts)) / self.tuner.epochs
                for group in self.optimizer.param_groups:
                    group["lr"] = self.tuner.learning_rate * min((done + 1e-3) / _WARMUP, 1.0) * (1 - done)

                loss += self._learn(batch)

            self.epoch, self.step = self.epoch + 1, self.step + len(parts)
            self.spent += time.monotonic() - start
            self.finish_epoch(loss / len(parts), self._score())
            self.save()

        return self.report(values=len(self.lesson.train), held_out=len(self.lesson.valid))

    def _embed(self, items: NDArray[np.int64]) -> Any:
        torch = require("torch")

        batch = {
            name: part.to(self.device) for name, part in self.collate([self.lesson.values[i] for i in items]).items()
        }
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self.module(batch).pooled.float()

    def _unit(self, rows: Any) -> Any:
        torch = require("torch")

        return torch.nn.functional.normalize(self.heads["map"](rows) if "map" in self.heads else rows, dim=1)

    def _learn(self, items: NDArray[np.int64]) -> float:
        """The loss of a batch, before one step down its gradient."""
        torch = require("torch")

        rows = self._embed(items)
        mine, theirs = self._unit(rows), torch.from_numpy(self.lesson.targets[items]).to(self.device)
        loss = (1 - (mine * theirs).sum(dim=1)).mean()
        if self.tuner.relation:
            near = theirs @ theirs.T
            missed = (mine @ mine.T - near).square().sum() / near.square().sum()
            loss = loss + self.tuner.relation * _RELATION * missed

        if self.lesson.soft is not None:
            heat = self.lesson.temperature
            said = torch.log_softmax(self.heads["labels"](rows) / heat, dim=1)
            soft = torch.from_numpy(self.lesson.soft[items]).to(self.device)
            wrong = torch.nn.functional.kl_div(said, soft, reduction="batchmean")
            loss = loss + self.lesson.label_weight * heat**2 * wrong

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), _CLIP)
        self.optimizer.step()

        return float(loss.detach())

    def _score(self) -> float | None:
        """Mean cosine to the teacher over the values held out."""
        torch = require("torch")

        held, size = self.lesson.valid, 4 * self.tuner.batch_size
        if not len(held):
            return None

        near = 0.0
        with torch.inference_mode():
            for at in range(0, len(held), size):
                mine = self._unit(self._embed(held[at : at + size])).cpu().numpy()
                near += float((mine * self.lesson.targets[held[at : at + size]]).sum())

        return round(near / len(held), 6)
