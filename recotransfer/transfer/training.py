"""A training run that lives in a folder: it resumes, keeps its best epoch and reports its learning curve."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recotransfer.data import Items
from recotransfer.encoders import Encoder
from recotransfer.encoders.base import content_bytes
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import atomic_file, digest, read_json, write_json
from recotransfer.numerics.rounding import SINGLE, exceeds
from recotransfer.transfer.base import Ints

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_STATE, _REPORT = "checkpoint.safetensors", "report.json"


class TrainingRun:
    """A training run: its learning curve, the weights of its best epoch, and a checkpoint to resume from.

    Attributes:
        settings: everything that determines the result, as plain JSON; a folder of a run with other settings is
            rejected.
        module: the network being trained.
        weights: name -> trainable parameter; `kept`: name -> its value at the best epoch.
        optimizer: Adam or AdamW over the weights.
        standing: names of the attributes that record the progress, saved as plain JSON.
        sign: 1 where a higher score is better, -1 where a lower one is.
        worse: epochs since the best one.
        spent: training time in seconds.
    """

    standing: ClassVar[tuple[str, ...]] = ("epoch", "step", "worse", "best", "curve", "spent")
    sign: ClassVar[int] = 1
    module: Module
    weights: dict[str, Tensor]
    optimizer: Any

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.epoch = self.step = self.worse = self.best = 0
        self.curve: list[dict[str, Any]] = []
        self.spent = 0.0
        self.kept: dict[str, Tensor] = {}

    def finish_epoch(self, loss: float | None, score: float | None) -> None:
        """Add an epoch to the curve; keep its weights if its score is the best so far or nothing can be scored.

        Better by no more than rounding is not better. A score that is not finite is never better, and is None in the
        curve.
        """
        known = score is not None and bool(np.isfinite(score))
        kept = next((point["valid"] for point in self.curve if point["epoch"] == self.best), None)
        highest = -np.inf if kept is None else self.sign * kept
        better = score is None or not self.curve or (known and exceeds(self.sign * score, highest, SINGLE))
        point = {"epoch": self.epoch, "step": self.step, "loss": loss, "valid": score if known else None}
        self.curve.append({**point, "seconds": round(self.spent, 1)})
        self.worse = 0 if better else self.worse + 1
        if better:
            self.best = self.epoch
            self.keep()

    def keep(self) -> None:
        """Keep a copy of the current weights as the best."""
        self.kept = {name: on_file(value) for name, value in self.weights.items()}

    def best_module(self) -> Module:
        """The module with the best weights, on the CPU."""
        torch = require("torch")

        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(self.kept[name])

        return self.module.eval().cpu()

    def report(self, **more: Any) -> dict[str, Any]:
        """Settings, `more`, the learning curve, the best epoch and the training time in seconds, as plain JSON."""
        results = {"curve": self.curve, "best": self.best, "seconds": round(self.spent, 1)}
        return {"settings": self.settings, **more, **results}

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report, which marks the run as finished, and remove the checkpoint; call it once results exist."""
        write_json(self.folder / _REPORT, report)
        (self.folder / _STATE).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"best/{name}": value for name, value in self.kept.items()}
        for name, value in self.weights.items():
            tensors[f"now/{name}"] = value
            for key, moment in self.optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = moment

        facts = {name: getattr(self, name) for name in self.standing}
        write_checkpoint(self.folder / _STATE, {**facts, "settings": self.settings}, tensors)

    def resume(self) -> bool:
        """Load the checkpoint; False where there is none."""
        if not (self.folder / _STATE).is_file():
            return False

        facts, tensors = read_checkpoint(self.folder / _STATE)
        check_same(facts.get("settings", {}), self.settings, self.folder)
        for name in self.standing:
            setattr(self, name, facts[name])

        self.kept = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
        for name, value in self.weights.items():
            value.data.copy_(tensors[f"now/{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                # A weight that has not had a gradient yet has no optimizer state.
                if (moment := tensors.get(f"optimizer/{key}/{name}")) is not None:
                    self.optimizer.state[value][key] = moment.to(value.device)

        return True


def ended(folder: Path, made: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of the finished run in `folder` whose result is `made`; None where there is none.

    Raises:
        InputError: the finished run had other settings.
    """
    if not ((folder / _REPORT).is_file() and made.is_dir()):
        return None

    report = read_json(folder / _REPORT)
    check_same(report["settings"], settings, folder)

    return report


def write_checkpoint(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and plain JSON facts to one file, atomically."""
    save = require("safetensors.torch").save

    plain = {name: on_file(value) for name, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(save(plain, {"state": json.dumps(facts)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors that `write_checkpoint` wrote.

    Raises:
        InputError: the file is damaged.
    """
    SafetensorError = require("safetensors").SafetensorError
    safe_open = require("safetensors").safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, ValueError, LookupError, TypeError):
        raise InputError(f"{path} is damaged; remove it and begin again") from None

    return facts, tensors


def on_file(tensor: Tensor) -> Tensor:
    """A copy of a tensor that safetensors can write: on the CPU and contiguous."""
    torch = require("torch")

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `InputError` if a run in the folder had other settings."""
    if differing := [name for name in now if before.get(name) != now[name]]:
        raise InputError(f"{folder} holds a run with another {', '.join(differing)}; give a new folder")


def model_of(encoder: Encoder) -> str:
    """The name of the encoder's model, without its revision."""
    return re.split(r"[/@]", encoder.name.partition("/")[2] or encoder.name)[0]


def digest_of_content(items: Items, *encoders: Encoder) -> str:
    """Digest of the items' ids and of what each encoder reads of them; unreadable files count as missing."""
    return digest(items.ids.ids, *([_content(value) for value in encoder.values(items)] for encoder in encoders))


def _content(value: object) -> str:
    try:
        return "" if value is None else hashlib.blake2b(content_bytes(value), digest_size=16).hexdigest()
    except OSError:
        return ""


def lengths(values: Sequence[Any]) -> Ints | None:
    """(n,) the lengths of texts in characters; None for other values, which need no padding."""
    return np.array([len(value) for value in values]) if isinstance(values[0], str) else None


def in_batches(rows: Ints, size: int, among: int, keys: Ints | None, rng: np.random.Generator) -> list[Ints]:
    """All `rows` in random batches of `size`.

    With `keys` (n,), lengths or groups, each run of `among` batches is sorted by key before it is cut, so that rows
    with similar keys share a batch.
    """
    order = rng.permutation(rows)
    if keys is not None:
        order = order[np.lexsort((keys[order], np.arange(len(order)) // (among * size)))]

    batches = [order[at : at + size] for at in range(0, len(order), size)]
    return [batches[at] for at in rng.permutation(len(batches))]
