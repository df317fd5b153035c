"""What every transfer method is: a map on vectors (`Transfer`) or a map on encoders (`Tuner`)."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.artifacts import Artifact, ArtifactWriter, atomic_file, digest, read_json, write_json
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders.base import Encoder, TrainableEncoder, content_bytes
from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.solvers import unit_rows

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

_STATE, _REPORT = "checkpoint.safetensors", "report.json"
_FEWEST, _MOST_HELD = 20, 1024  # related items, or none is held out; held-out pairs that are looked at
_HEAD_PACE = 10.0  # steps of heads and judges against those of the network, which they must keep up with
_LEAST_STEPS = 20  # of an epoch: few relations are gone through several times
_FROM_0, _ABOVE_0, _SHARES = {"hidden", "epochs"}, {"learning_rate", "temperature"}, {"keep"}  # names of settings


class Transfer(ABC):
    """Vectors in, vectors out; learned from relations alone, applied to items seen or not.

    Subclasses implement `_learn` and `_apply`. All they learn is a dict of arrays, so saving is written once.
    Users of the relations are whatever relates the items: shoppers, classes, shops. Items without content are left out
    of learning and stay without content.
    """

    state_: dict[str, NDArray[Any]]

    @abstractmethod
    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        """Arrays that `_apply` needs; `vectors` (n, dim) are rows of `relations.items`, all with content."""

    @abstractmethod
    def _apply(self, vectors: Array) -> Array:
        """(n, dim') the mapped vectors of any items, by `state_`."""

    @classmethod
    def name(cls) -> str:
        """What `named` knows the class by."""
        return cls.__name__ if cls.__module__.startswith(f"{__package__}.") else f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def named(cls, name: str) -> type[Transfer]:
        """The transfer class of that name among those imported; a file never chooses what is imported."""
        waiting: list[type[Transfer]] = Transfer.__subclasses__()
        while waiting:
            found = waiting.pop()
            if found.name() == name and not inspect.isabstract(found):
                return found
            waiting += found.__subclasses__()
        module = name.partition(":")[0]
        hint = f"import {module} first, then load again" if ":" in name else "it was made by another version"
        raise ArtifactError(f"no transfer is called {name!r}; {hint}")

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def fit(self, items: Embeddings, relations: Interactions) -> Self:
        """Learn from the items' vectors and how users relate them; returns self.

        Items of `items` without a relation are known by their vectors only; relations of items without content are
        left aside.
        """
        self.check_settings()
        known = np.flatnonzero(items.has_content)
        if not len(known):
            raise InputError(f"{type(self).__name__} has no item with content to learn from; see the encoder's report")
        self.dim_in_ = items.dim
        self.state_ = self._learn(items.vectors[known], _among(relations, items, known))
        return self

    def check_settings(self) -> None:
        """Refuse numbers that no setting of that name can have; `fit` begins with it."""
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value, kind = getattr(self, name), str(parameter.annotation)
            if name == "rng" or not kind.startswith(("int", "float")) or (value is None and "None" in kind):
                continue
            whole = kind.startswith("int")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                wanted = "a whole number" if whole else "a number"
                raise InputError(f"{type(self).__name__}: {name} must be {wanted}, got {value!r}")
            least, most = int(whole and name not in _FROM_0), 1 if name in _SHARES else np.inf
            if not least <= value <= most or value == np.inf or (value == 0 and name in _ABOVE_0):
                wanted = "above 0" if name in _ABOVE_0 else f"at least {least}" + " and at most 1" * (most == 1)
                raise InputError(f"{type(self).__name__}: {name} must be {wanted}, got {value}")

    def transform(self, items: Embeddings) -> Embeddings:
        """The mapped embeddings; `source` tells the maps applied, in order."""
        if not hasattr(self, "state_"):
            raise NotFittedError(f"this {type(self).__name__} has not learned anything; call fit or load first")
        if items.dim != self.dim_in_:
            raise InputError(f"{type(self).__name__} was fitted on {self.dim_in_} dimensions, not {items.dim}")
        out = self._apply(items.vectors)
        return Embeddings(items.ids, out, f"{items.source} > {type(self).__name__}", items.has_content)

    def write(self, writer: ArtifactWriter) -> None:
        """Store what was learned."""
        names = sorted(self.state_)
        writer.json("transfer", {"params": self.params(), "dim": self.dim_in_, "state": names})
        for name in names:
            writer.array(name, self.state_[name])

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """Take back what `write` stored."""
        facts = artifact.json("transfer")
        out = cls(**facts["params"])
        out.dim_in_ = facts["dim"]
        out.state_ = {name: artifact.array(name) for name in facts["state"]}
        return out


class Tuner(ABC):
    """Encoder in, encoder out: the weights change, the encoder's place in a `TransferTask` does not.

    Attributes:
        report_: plain JSON on the last `tune`: steps, seconds and the learning curve.
    """

    report_: dict[str, Any]

    @abstractmethod
    def tune(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> TrainableEncoder:
        """An encoder of the same kind that learned from how users relate the items; `encoder` stays as it is."""


class Resumable:
    """A training in a folder: its curve, the weights of its best epoch, and a checkpoint to go on from.

    Attributes:
        settings: plain JSON of what decides the outcome; a folder with others is refused.
        module: what is trained.
        weights: name -> parameter that learns; `kept`: name -> its value at the best epoch.
        optimizer: of the weights, an Adam.
        standing: names of attributes, plain JSON, that say how far the run is.
        sign: 1, or -1 where the smaller score is the better one.
        worse: epochs since the best one.
        spent: seconds.
    """

    standing: ClassVar[tuple[str, ...]] = ("epoch", "step", "worse", "best", "curve", "spent")
    sign: ClassVar[int] = 1
    module: Any
    weights: dict[str, Any]
    optimizer: Any

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = Path(folder), settings
        self.epoch = self.step = self.worse = self.best = 0
        self.curve: list[dict[str, Any]] = []
        self.spent = 0.0
        self.kept: dict[str, Any] = {}

    def finish_epoch(self, loss: float | None, score: float | None) -> None:
        """Add an epoch to the curve, and keep its weights if no other had a better score, or none has one.

        A score that is no number is never better, and is None in the curve.
        """
        before = [self.sign * point["valid"] for point in self.curve if point["valid"] is not None]
        known = score is not None and bool(np.isfinite(score))
        better = score is None or not self.curve or (known and self.sign * score > max(before, default=-np.inf))
        point = {"epoch": self.epoch, "step": self.step, "loss": loss, "valid": score if known else None}
        self.curve.append({**point, "seconds": round(self.spent, 1)})
        self.worse = 0 if better else self.worse + 1
        if better:
            self.best = self.epoch
            self.keep()

    def keep(self) -> None:
        """Take the weights as they are for the best."""
        self.kept = {name: on_file(value) for name, value in self.weights.items()}

    def best_module(self) -> Any:
        """The module with the best weights, on the CPU."""
        import torch

        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(self.kept[name])
        return self.module.eval().cpu()

    def report(self, **more: Any) -> dict[str, Any]:
        """Settings, the curve, the epoch whose weights were kept, the seconds and `more`, as plain JSON."""
        own = {"curve": self.curve, "best": self.best, "seconds": round(self.spent, 1)}
        return {"settings": self.settings, **more, **own}

    def finish(self, report: Mapping[str, Any]) -> None:
        """Leave the report where `ended` finds it, in place of the checkpoint; what was made is there already."""
        write_json(self.folder / _REPORT, report)
        (self.folder / _STATE).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"best/{name}": value for name, value in self.kept.items()}
        for name, value in self.weights.items():
            tensors[f"now/{name}"] = value
            for key, part in self.optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = part
        facts = {name: getattr(self, name) for name in self.standing}
        write_checkpoint(self.folder / _STATE, {**facts, "settings": self.settings}, tensors)

    def resume(self) -> bool:
        """Take up the checkpoint; False where there is none."""
        if not (self.folder / _STATE).is_file():
            return False
        facts, tensors = read_checkpoint(self.folder / _STATE)
        check_same(facts.get("settings", {}), self.settings, self.folder)
        for name in self.standing:
            setattr(self, name, facts[name])
        self.kept = {name.removeprefix("best/"): part for name, part in tensors.items() if name.startswith("best/")}
        for name, value in self.weights.items():
            value.data.copy_(tensors[f"now/{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (part := tensors.get(f"optimizer/{key}/{name}")) is not None:  # a weight may be without a gradient
                    self.optimizer.state[value][key] = part.to(value.device)
        return True


def ended(folder: Path, made: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a run that ended in `folder` and made `made`, None where none did.

    Raises:
        InputError: a run with other settings ended there.
    """
    if not ((folder / _REPORT).is_file() and made.is_dir()):
        return None
    report = read_json(folder / _REPORT)
    check_same(report["settings"], settings, folder)
    return report


def write_checkpoint(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write tensors and plain JSON facts to one file, whole or not at all."""
    from safetensors.torch import save

    plain = {name: on_file(value) for name, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(save(plain, {"state": json.dumps(facts)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts and tensors of `write_checkpoint`; `InputError` where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, ValueError, LookupError, TypeError):
        raise InputError(f"{path} is damaged; remove it and begin again") from None
    return facts, tensors


def on_file(tensor: Any) -> Any:
    """A copy of a tensor that safetensors takes: on the CPU, in the plain layout."""
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run of other settings."""
    if differing := [name for name in now if before.get(name) != now[name]]:
        raise InputError(f"{folder} holds a run with another {', '.join(differing)}; give a new folder")


def model_of(encoder: Encoder) -> str:
    """The name of the encoder's model, without revision."""
    return re.split(r"[/@]", encoder.name.partition("/")[2] or encoder.name)[0]


def digest_of_content(items: Items, *encoders: Encoder) -> str:
    """Fingerprint of the items' ids and of what each encoder reads of them; unreadable files are as missing."""
    return digest(items.ids.ids, *([_content(value) for value in encoder.values(items)] for encoder in encoders))


def _content(value: Any) -> str:
    try:
        return "" if value is None else hashlib.blake2b(content_bytes(value), digest_size=16).hexdigest()
    except OSError:
        return ""


def lengths(values: Sequence[Any]) -> Ints | None:
    """(n,) of texts, which in batches of like lengths need less padding; None of other values."""
    return np.array([len(value) for value in values]) if isinstance(values[0], str) else None


def in_batches(rows: Ints, size: int, among: int, kin: Ints | None, rng: np.random.Generator) -> list[Ints]:
    """All `rows` at random, `size` at a time; among so many batches those of near `kin`, numbers, come together."""
    order = rng.permutation(rows)
    if kin is not None:
        order = order[np.lexsort((kin[order], np.arange(len(order)) // (among * size)))]
    found = [order[at : at + size] for at in range(0, len(order), size)]
    return [found[at] for at in rng.permutation(len(found))]


class Step(NamedTuple):
    """Where training stands: all weights by name, the network's inputs (n, dim), the generator, the share done."""

    weights: dict[str, Any]
    inputs: Any
    draw: np.random.Generator
    progress: float


class Trained(Transfer):
    """A small network on the vectors, trained by gradient on the relations; subclasses say how tasks add up.

    An item's vector is centred, scaled to length 1, and goes through `skip` plus one hidden layer that starts silent:
    before the first step the map is the identity, or the leading directions where `dim` is smaller. Rows come out of
    length 1. A tenth of the related items, none where there are fewer than 20, is held out from all tasks; the weights
    that serve them best are kept, the starting ones included.

    Attributes:
        report_: plain JSON on the last `fit`: the held-out loss before training and after each epoch, and the best.
    """

    report_: dict[str, Any]
    dim: int | None
    hidden: int
    temperature: float = 0.1
    batch_size: int
    learning_rate: float
    epochs: int
    patience: int
    rng: int

    def _kinds(self, relations: Interactions) -> dict[str, Interactions]:
        """The relations of each task, by name; one task unless a subclass knows better."""
        return {"relations": relations}

    def _tasks(self, vectors: Array, relations: Interactions) -> dict[str, Task]:
        """What is learned, by name."""
        related = np.unique(relations.taken().indices)
        held = np.zeros(len(relations.items), bool)
        if len(related) >= _FEWEST:
            held[np.random.default_rng(self.rng).permutation(related)[: len(related) // 10]] = True
        kinds = self._kinds(relations)
        return {name: Task(name, vectors, kind, held, self.temperature) for name, kind in kinds.items()}

    def _extras(self, dim: int) -> dict[str, Any]:
        """Further weights to train, by name."""
        return {}

    def _total(self, losses: dict[str, Any], outputs: Any, step: Step) -> Any:
        """One loss from those of the tasks; `outputs` are the vectors of the first task's batch."""
        return sum(losses.values())

    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        import torch

        mean = vectors.mean(axis=0)
        inputs = unit_rows(vectors - mean)
        dim = inputs.shape[1] if self.dim is None else min(self.dim, inputs.shape[1])
        skip = np.eye(dim, dtype=np.float32)
        if dim < inputs.shape[1]:
            skip = np.linalg.eigh(inputs.T @ inputs)[1][:, ::-1][:, :dim].astype(np.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.rng)
            network = {"skip": torch.tensor(skip)}
            if self.hidden:
                network["inner"] = torch.randn(len(mean), self.hidden) / len(mean) ** 0.5
                network["bias"], network["outer"] = torch.zeros(self.hidden), torch.zeros(self.hidden, dim)
            tasks = self._tasks(through(network, inputs), relations)
            trained = network | self._extras(dim)
            trained |= {f"head of {name}": task.head for name, task in tasks.items() if task.head is not None}
            for weight in trained.values():
                weight.requires_grad_()
            self._descend(inputs, tasks, network, trained)
        return {"mean": mean} | {name: weight.detach().numpy() for name, weight in network.items()}

    def _descend(self, inputs: Array, tasks: dict[str, Task], network: dict[str, Any], trained: dict[str, Any]) -> None:
        import torch

        x, draw = torch.from_numpy(inputs), np.random.default_rng(self.rng)
        groups: dict[float, list[Any]] = {1.0: [], _HEAD_PACE: []}
        for name, weight in trained.items():
            groups[1.0 if name in network else _HEAD_PACE].append(weight)
        optimizer = torch.optim.Adam([{"params": g, "lr": p * self.learning_rate} for p, g in groups.items() if g])
        steps = max(_LEAST_STEPS, -(-max(task.events for task in tasks.values()) // self.batch_size))
        curve, best, kept = [], 0, {name: weight.detach().clone() for name, weight in trained.items()}
        for epoch in range(self.epochs + 1):
            for step in range(steps if epoch else 0):
                batches = {name: task.batch(draw, self.batch_size) for name, task in tasks.items()}
                outputs = {name: through(network, x[batch.rows]) for name, batch in batches.items()}
                losses = {name: tasks[name].loss(outputs[name], batch) for name, batch in batches.items()}
                progress = (step / steps + epoch - 1) / self.epochs
                total = self._total(losses, outputs[next(iter(tasks))], Step(trained, x, draw, progress))
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
            with torch.inference_mode():
                held = {n: float(t.loss(through(network, x[t.held.rows]), t.held)) for n, t in tasks.items() if t.held}
            curve.append({"epoch": epoch, **held})
            if not held or (epoch and sum(held.values()) < sum(curve[best][name] for name in held)):
                best = epoch
            if best == epoch:
                kept = {name: weight.detach().clone() for name, weight in trained.items()}
            if epoch - best >= self.patience:
                break
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(kept[name])
        self.report_ = {"curve": curve, "best": best}

    def _apply(self, vectors: Array) -> Array:
        inputs = unit_rows(vectors - self.state_["mean"])
        out = inputs @ self.state_["skip"]
        if "inner" in self.state_:
            out += np.maximum(inputs @ self.state_["inner"] + self.state_["bias"], 0) @ self.state_["outer"]
        return unit_rows(out)


def through(network: dict[str, Any], inputs: Any) -> Any:
    """(n, dim) unit rows of the network's outputs; numpy or torch in, torch out."""
    import torch
    from torch.nn import functional

    x = torch.as_tensor(inputs)
    out = x @ network["skip"]
    if "inner" in network:
        out = out + torch.relu(x @ network["inner"] + network["bias"]) @ network["outer"]
    return functional.normalize(out, dim=1)


class Batch(NamedTuple):
    """Items that go through the network, and for pairs the user of each; `rows` are anchors, others, strangers."""

    rows: Ints
    user: Ints


class Task:
    """One loss on relations, told by the data: labels where no item has two users, else items taken together.

    Labels: softmax over users, weights starting at the mean of each user's items. Pairs: a user, and two of their items
    in turn, are drawn evenly. The second must be told from the batch's others and from as many strangers, by a softmax
    over cosines corrected for how often each is drawn (logQ: Yi et al., "Sampling-bias-corrected neural modeling",
    2019); items that the user has too are no strangers.

    Args:
        name: of the relations, for messages.
        vectors: (n, dim) torch tensor, what the network gives before training.
        relations: over those n items.
        held: (n,) bool, items that are held out.
        temperature: of the softmax.
    """

    def __init__(
        self, name: str, vectors: Any, relations: Interactions, held: NDArray[np.bool_], temperature: float
    ) -> None:
        import torch

        self.temperature, self.head = temperature, None
        self.taken = relations.taken()
        user, item = self.taken.nonzero()
        check_apart(user[~held[item]], item[~held[item]], name)
        count = np.bincount(item, minlength=len(held))
        self.trained = np.flatnonzero((count > 0) & ~held)
        self.labels = bool(count.max() <= 1)
        self.held = None
        if self.labels:
            self.label = np.full(len(count), -1)
            names, self.label[item] = np.unique(user, return_inverse=True)
            shape = (len(names), len(count))
            known = (np.ones(len(self.trained)), (self.label[self.trained], self.trained))
            means = sparse.csr_array(known, shape=shape) @ vectors.detach().numpy()
            self.head = torch.from_numpy(unit_rows(means.astype(np.float32)))
            self.events = len(self.trained)
            if len(own := np.intersect1d(item, np.flatnonzero(held))):
                self.held = Batch(own, np.empty(0, np.int64))
            return
        self.own, self.start, self.users = _two_or_more(self.taken, ~held)
        if not len(self.users):
            raise InputError(
                f"{name}: no user has two items with content, so there is nothing to learn; give more relations"
            )
        self.events = len(self.own)
        size = np.diff(self.start)
        self.often = np.bincount(self.own, np.repeat(1 / (len(size) * size), size), len(count))
        place = np.searchsorted(self.users, user)
        ready = held[item] & (self.users[np.minimum(place, len(self.users) - 1)] == user)
        if ready.any():
            self.often += np.bincount(item[ready], minlength=len(count)) / ready.sum()
            picked = np.random.default_rng(0).permutation(np.flatnonzero(ready))[:_MOST_HELD]
            anchor = self.own[self.start[place[picked]]]
            self.held = Batch(np.concatenate([anchor, item[picked]]), user[picked])

    def batch(self, draw: np.random.Generator, size: int) -> Batch:
        """Training items drawn with `draw`: `size` labelled ones, or `size` pairs and as many strangers."""
        if self.labels:
            return Batch(draw.choice(self.trained, min(size, len(self.trained)), replace=False), np.empty(0, np.int64))
        at = draw.integers(len(self.users), size=size)
        first, width = self.start[at], np.diff(self.start)[at]
        one = draw.integers(width)
        other = (one + 1 + draw.integers(width - 1)) % width
        strangers = self.trained[draw.integers(len(self.trained), size=size)]
        return Batch(np.concatenate([self.own[first + one], self.own[first + other], strangers]), self.users[at])

    def loss(self, outputs: Any, batch: Batch) -> Any:
        """The mean loss of a batch whose rows have these vectors."""
        import torch
        from torch.nn import functional

        if self.labels:
            logits = outputs @ functional.normalize(self.head, dim=1).T / self.temperature
            return functional.cross_entropy(logits, torch.from_numpy(self.label[batch.rows]))
        n = len(batch.user)
        other = batch.rows[n:]
        often = np.log(self.often[other] + (len(other) > n) / len(self.trained))
        logits = outputs[:n] @ outputs[n:].T / self.temperature - torch.from_numpy(often.astype(np.float32))
        same = self.taken[batch.user][:, other].toarray() > 0
        same[np.arange(n), np.arange(n)] = False
        return functional.cross_entropy(logits.masked_fill(torch.from_numpy(same), -torch.inf), torch.arange(n))


def check_apart(user: NDArray[Any], item: NDArray[Any], name: str = "relations") -> None:
    """Refuse pairs of users and items, each given once, in which the items do not differ by their users."""
    users, items = len(np.unique(user)), len(np.unique(item))
    if not items:
        raise InputError(f"{name}: no item with content that is not held out has a user; give more of weights above 0")
    if len(user) == users * items:
        raise InputError(
            f"{name}: every user has the same {items} items with content, so nothing tells them apart; give two users "
            "or labels at least that differ in their items"
        )


def _two_or_more(taken: sparse.csr_array, usable: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Usable items of users who have two or more, end to end; where each user's begin; which users."""
    user, item = taken.nonzero()
    kept = usable[item]
    user, item = user[kept], item[kept]
    size = np.bincount(user, minlength=taken.shape[0])
    kept = size[user] >= 2
    users = np.flatnonzero(size >= 2)
    order = np.argsort(user[kept], kind="stable")
    return item[kept][order], np.concatenate([[0], np.cumsum(size[users])]), users


def _among(relations: Interactions, items: Embeddings, known: NDArray[np.int64]) -> Interactions:
    """The relations of the items at `known`, over a map of those items alone."""
    place = np.full(len(items.ids), -1, np.int64)
    place[known] = np.arange(len(known))
    at = items.ids.positions(relations.items.ids, missing="negative")
    where = np.where(at >= 0, place[at], -1)[relations.item]
    kept = np.flatnonzero(where >= 0)
    r = relations.select(kept)
    ids = items.ids if len(known) == len(items.ids) else IdMap(items.ids.take(known))
    return Interactions(r.users, ids, r.user, where[kept], r.weight, r.time, r.kind, r.kinds)
