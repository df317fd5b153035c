"""Distillation: a small encoder learns to give the vectors of a large one; the large one is asked once per item."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.artifacts import digest, digest_of_events
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import encode_items, encoder_from_spec
from recotransfer.encoders.base import Encoder, TrainableEncoder, one_or_many
from recotransfer.encoders.static import StaticText, Vocabulary, words, write_static
from recotransfer.encoders.text import computes_in_bfloat16
from recotransfer.errors import InputError
from recotransfer.recommenders import Probe
from recotransfer.solvers import unit_rows
from recotransfer.transfer.base import Resumable, Tuner, digest_of_content, ended, in_batches, lengths, model_of

Float = NDArray[np.float32]

_HELD_OUT, _MOST_HELD, _FEWEST = 0.05, 1000, 20  # share of values validated on, at most so many, none below so many
_PATIENCE, _WARMUP, _CLIP = 3, 0.1, 1.0
_AMONG = 16  # batches among which texts are sorted by length, or by what they are near
_KIN = 32  # texts that are near one another in a batch of a static student
_RELATION = 0.1  # the share of the cosines' squares that is missed is some ten times one minus the cosine
_RIDGE, _SWEEPS, _ALONE = 0.3, 20, 0.5  # the first table: penalty, steps of conjugate gradients, weight of lone words
_TEACHER = "teacher"  # folder of its vectors


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
        rng: seed.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        student: TrainableEncoder | None = None,
        layers: int = 3,
        relation: float = 1.0,
        labels: float = 0.0,
        temperature: float = 2.0,
        epochs: int = 10,
        learning_rate: float = 3e-4,
        batch_size: int = 64,
        rng: int = 0,
    ) -> None:
        self.folder, self.student, self.layers = folder, student, layers
        self.relation, self.labels, self.temperature = relation, labels, temperature
        self.epochs, self.learning_rate, self.batch_size, self.rng = epochs, learning_rate, batch_size, rng

    def tune(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> TrainableEncoder:
        """The student, whose model lies below `folder`; `report_` tells the curve and which epoch was kept.

        Raises:
            InputError: settings that cannot be, no items to learn from, or a folder of another run.
        """
        _check(self, ("epochs", "batch_size", "layers"), ("learning_rate", "temperature"), ("relation", "labels"))
        folder, student = Path(self.folder), self.student or encoder
        names = ("layers", "relation", "labels", "temperature", "epochs", "learning_rate", "batch_size", "rng")
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
            return cast(TrainableEncoder, encoder_from_spec({**student.spec(), "model": str(target)}))
        taught = encode_items(items, encoder, cache=folder / _TEACHER).embeddings
        content = student.values(items)
        rows = [row for row in np.flatnonzero(taught.has_content) if content[row] is not None]
        if len(rows) < 2:
            raise InputError(f"{len(rows)} items have content to learn from; give more, see the encoder's report")
        module = student.module()
        if self.student is None:
            _keep_layers(module, self.layers)
        soft = _soft_labels(taught, relations, self.temperature)[rows] if self.labels else None
        lesson = _Lesson([content[row] for row in rows], unit_rows(taught.vectors[rows]), soft, *_parts(len(rows)))
        run = _Training(module, student.collate, lesson, self, settings)
        self.report_ = run.train()
        made = student.saved(run.best_module(), target)
        run.finish(self.report_)
        shutil.rmtree(folder / _TEACHER, ignore_errors=True)
        return made


class DistilStatic(Tuner):
    """A `StaticText` that imitates any text encoder, hundreds of times as fast.

    The vocabulary is the words of the items' texts and the pieces of the teacher's tokenizer. As in Model2Vec (Tulkens
    and van Dongen, 2024) the teacher's vectors are cut to their principal components, found on the texts. The table
    begins as the ridge regression of the teacher's vectors on the words of the texts and on lone words. Table and
    layers then learn together from the texts and from texts made up of the beginning of one and the end of another, by
    the losses of `Distil`. A batch holds groups of texts that the teacher finds alike, for cosines between near texts
    decide who is recommended what. Texts held out, epochs and resuming are as there.

    All texts of the items given are learned from, whether related or not: leave items out of `items` to leave out their
    texts. The relations are not read.

    Args:
        folder: as in `Distil`.
        dim: width of the student's vectors; at most the teacher's.
        width: pairs of neighbouring words are read through so many relus.
        hidden: width of the layer over the sums.
        made_up: how many texts to make up.
        relation, epochs, learning_rate, batch_size, rng: as in `Distil`.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        dim: int = 384,
        width: int = 384,
        hidden: int = 512,
        made_up: int = 150_000,
        relation: float = 5.0,
        epochs: int = 8,
        learning_rate: float = 2e-3,
        batch_size: int = 512,
        rng: int = 0,
    ) -> None:
        self.folder, self.dim, self.width, self.hidden, self.made_up = folder, dim, width, hidden, made_up
        self.relation, self.epochs, self.learning_rate = relation, epochs, learning_rate
        self.batch_size, self.rng = batch_size, rng

    def tune(self, encoder: Encoder, items: Items, relations: Interactions | None = None) -> StaticText:
        """The student, whose model lies below `folder`; `report_` tells the curve and which epoch was kept.

        Raises:
            InputError: settings that cannot be, no texts to learn from, or a folder of another run.
        """
        _check(self, ("epochs", "batch_size", "dim", "width", "hidden"), ("learning_rate",), ("relation", "made_up"))
        names = ("dim", "width", "hidden", "made_up", "relation", "epochs", "learning_rate", "batch_size", "rng")
        texts = list(dict.fromkeys(text for text in encoder.values(items) if text is not None))
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"{len(texts)} texts to learn from; give a text encoder and items with text in its columns"
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
        train, valid = _parts(len(texts))
        known = [texts[i] for i in train]
        entries = _entries(encoder, texts)
        alone = [entry.removeprefix("##") for entry in entries]
        made = crossed(known, self.made_up, self.rng)
        asked = [*texts, *made, *alone]
        vectors = _ask(encoder, asked, folder / _TEACHER)
        targets = _principal(vectors, len(texts), self.dim)
        begin, end = len(texts) + len(made), len(asked)
        first = self._first(entries, known, targets[train], targets[begin:end])
        write_static(folder / "begin", entries, first)
        student = StaticText(model=folder / "begin", column=encoder.column)
        order = np.concatenate([train, train, np.arange(len(texts), begin)])  # texts are the better half of the lesson
        lesson = _Lesson(asked, targets, None, order, valid, _kin(targets, order, self.batch_size))
        run = _Training(student.module(), student.collate, lesson, self, settings)
        self.report_ = run.train()
        made_student = student.saved(run.best_module(), target)
        run.finish(self.report_)
        for part in ("begin", _TEACHER):
            shutil.rmtree(folder / part, ignore_errors=True)
        return made_student

    def _first(self, entries: Sequence[str], texts: Sequence[str], targets: Float, alone: Float) -> dict[str, Any]:
        """Weights to begin with: the ridge regression in the table, a layer that adds nothing over it."""
        found, start = Vocabulary(entries).rows(texts)
        count = np.diff(start)
        share = np.repeat(1 / np.sqrt(np.maximum(count, 1)), count).astype(np.float32)
        bags = sparse.csr_array((share, found, start), shape=(len(texts), len(entries)))
        lone = sparse.diags_array(np.full(len(entries), _ALONE, np.float32))
        both = sparse.csr_array(sparse.vstack([bags, lone]))
        table = regression(both, np.vstack([targets, _ALONE * alone]), _RIDGE, _SWEEPS)
        rng, dim = np.random.default_rng(self.rng), targets.shape[1]

        def drawn(rows: int, columns: int) -> Float:
            return rng.uniform(-1, 1, (rows, columns)).astype(np.float32) / np.float32(np.sqrt(rows))

        return {
            "table": table * np.float32(np.sqrt(dim)),  # entries near 1, as the layers and Adam's steps expect
            "own": drawn(dim, self.width),
            "before": drawn(dim, self.width),
            "bias": np.zeros(self.width, np.float32),
            "in": drawn(dim + self.width, self.hidden),
            "in_bias": np.zeros(self.hidden, np.float32),
            "out": np.zeros((self.hidden, dim), np.float32),
            "out_bias": np.zeros(dim, np.float32),
        }


# -- what is taught ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesson:
    """Values, the teacher's unit vectors (n, dim) and soft labels (n, labels) of them, and which are for what.

    Values of one `kin` (n,) come to one batch; of None texts of one length do.
    """

    values: Sequence[Any]
    targets: Float
    soft: Float | None
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    kin: NDArray[np.int64] | None = None


def crossed(texts: Sequence[str], count: int, rng: int) -> list[str]:
    """`count` texts, each the beginning of one text and the end of another, or a few words of one."""
    draw = np.random.default_rng(rng)
    parts = [text.split() for text in texts]
    one, other = draw.integers(len(parts), size=(2, count))
    cuts, kinds = draw.random((count, 2)), draw.random(count) < 0.5
    out = []
    for a, b, (cut, back), both in zip(one.tolist(), other.tolist(), cuts.tolist(), kinds.tolist(), strict=True):
        left, right = parts[a], parts[b]
        if both:
            chosen = left[: 1 + int(cut * len(left))] + right[int(back * len(right)) :]
        else:
            at = int(cut * len(left))
            chosen = left[at : at + 1 + int(back * 5)]
        out.append(" ".join(chosen))
    return out


def _entries(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """Words of the texts, and words and pieces of the encoder's tokenizer, each once."""
    found = dict.fromkeys(word for text in texts for word in words(text))
    file = Path(getattr(encoder, "folder", "")) / "tokenizer.json"
    if getattr(encoder, "folder", None) is None or not file.is_file():
        return list(found)
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    tokens = [token if isinstance(token, str) else token[0] for token in model["vocab"]]
    marks = "▁Ġ" if any(token.startswith(("▁", "Ġ")) for token in tokens) else ""
    for token in tokens:
        inner = token[:1] not in marks if marks else token.startswith("##")
        bare = token.lstrip(marks) if marks else token.removeprefix("##")
        if words(bare) == [bare.lower()]:
            found["##" * inner + bare.lower()] = None
    return list(found)


def _ask(encoder: Encoder, texts: Sequence[str], cache: Path) -> Float:
    """(texts, dim) the encoder's vectors, zeros where it has none."""
    first, *others = one_or_many(encoder.column)
    table = pd.DataFrame({first: list(texts), **dict.fromkeys(others)})
    items = Items(IdMap(np.arange(len(texts))), table, dict.fromkeys((first, *others), "text"))
    return encode_items(items, encoder, cache=cache).embeddings.vectors


def _principal(vectors: Float, known: int, dim: int) -> Float:
    """(n, dim) unit rows: the principal components of the first `known` vectors, about their mean."""
    centre = vectors[:known].mean(axis=0)
    _, _, axes = np.linalg.svd(vectors[:known] - centre, full_matrices=False)
    return unit_rows((vectors - centre) @ axes[:dim].T)


def regression(features: sparse.csr_array, targets: Float, reg: float, sweeps: int) -> Float:
    """(columns, dim) W near the least of |features W - targets|^2 + reg |W|^2, by conjugate gradients from zero."""
    turned = sparse.csr_array(features.T)
    scale = 1 / (np.asarray(turned.multiply(turned).sum(axis=1), np.float32).reshape(-1, 1) + reg)
    weights = np.zeros((features.shape[1], targets.shape[1]), np.float32)
    left = turned @ targets
    step = scale * left
    size = (left * step).sum(axis=0)
    for _ in range(sweeps):
        image = turned @ (features @ step) + reg * step
        length = size / np.maximum((step * image).sum(axis=0), 1e-20)
        weights += length * step
        left = left - length * image
        better = scale * left
        new = (left * better).sum(axis=0)
        step = better + (new / np.maximum(size, 1e-20)) * step
        size = new
    return np.asarray(weights, np.float32)


def _kin(targets: Float, rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(n,) the cluster of each of the teacher's vectors, of so many that a batch gets `_KIN` of one."""
    from sklearn.cluster import MiniBatchKMeans

    count = max(1, min(_AMONG * size, len(rows)) // _KIN)
    sample = targets[rows[:: max(1, len(rows) // 40_000)]]
    return np.asarray(MiniBatchKMeans(count, n_init=1, random_state=0).fit(sample).predict(targets), np.int64)


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


def _parts(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and positions held out, the same whatever the settings."""
    held = min(_MOST_HELD, int(_HELD_OUT * count)) if count >= _FEWEST else 0
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def _check(tuner: Any, whole: Sequence[str], positive: Sequence[str], least_zero: Sequence[str]) -> None:
    for name in whole:
        if isinstance(value := getattr(tuner, name), bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a whole number from 1")
    for name in (*positive, *least_zero):
        if not (getattr(tuner, name) > 0 or (name in least_zero and getattr(tuner, name) == 0)):
            least = "at least 0" if name in least_zero else "above 0"
            raise InputError(f"{name} is {getattr(tuner, name)!r}; it must be {least}")


# -- training ----------------------------------------------------------------------------------------------------------


def _keep_layers(module: Any, count: int) -> None:
    """Leave `count` layers in a network, evenly spaced from the first to the last; its configuration says so."""
    import torch

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


class _Training(Resumable):
    """One training: the student, its heads, the optimizer, and where it stands, all of it in the checkpoint."""

    def __init__(
        self,
        module: Any,
        collate: Callable[[Sequence[Any]], Mapping[str, Any]],
        lesson: _Lesson,
        tuner: Distil | DistilStatic,
        settings: dict[str, Any],
    ) -> None:
        import torch

        super().__init__(tuner.folder, settings)
        self.collate, self.lesson, self.tuner = collate, lesson, tuner
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.half = computes_in_bfloat16() == "bfloat16" and isinstance(tuner, Distil)
        self.module = module.to(self.device).eval()  # no dropout: the teacher's vectors are exact
        width = self._embed(np.arange(1)).shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(tuner.rng)
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
            rng = np.random.default_rng([self.tuner.rng, self.epoch])
            kin = self.lesson.kin
            kin = lengths(self.lesson.values) if kin is None else rng.permutation(kin.max() + 1)[kin]
            parts = in_batches(self.lesson.train, self.tuner.batch_size, _AMONG, kin, rng)
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
        import torch

        batch = {
            name: part.to(self.device) for name, part in self.collate([self.lesson.values[i] for i in items]).items()
        }
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self.module(batch).pooled.float()

    def _unit(self, rows: Any) -> Any:
        import torch

        return torch.nn.functional.normalize(self.heads["map"](rows) if "map" in self.heads else rows, dim=1)

    def _learn(self, items: NDArray[np.int64]) -> float:
        """The loss of a batch, before one step down its gradient."""
        import torch

        rows = self._embed(items)
        mine, theirs = self._unit(rows), torch.from_numpy(self.lesson.targets[items]).to(self.device)
        loss = (1 - (mine * theirs).sum(dim=1)).mean()
        if self.tuner.relation:
            near = theirs @ theirs.T
            missed = (mine @ mine.T - near).square().sum() / near.square().sum()
            loss = loss + self.tuner.relation * _RELATION * missed
        if self.lesson.soft is not None and isinstance(self.tuner, Distil):
            heat = self.tuner.temperature
            said = torch.log_softmax(self.heads["labels"](rows) / heat, dim=1)
            soft = torch.from_numpy(self.lesson.soft[items]).to(self.device)
            wrong = torch.nn.functional.kl_div(said, soft, reduction="batchmean")
            loss = loss + self.tuner.labels * heat**2 * wrong
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), _CLIP)
        self.optimizer.step()
        return float(loss.detach())

    def _score(self) -> float | None:
        """Mean cosine to the teacher over the values held out."""
        import torch

        held, size = self.lesson.valid, 4 * self.tuner.batch_size
        if not len(held):
            return None
        near = 0.0
        with torch.inference_mode():
            for at in range(0, len(held), size):
                mine = self._unit(self._embed(held[at : at + size])).cpu().numpy()
                near += float((mine * self.lesson.targets[held[at : at + size]]).sum())
        return round(near / len(held), 6)
