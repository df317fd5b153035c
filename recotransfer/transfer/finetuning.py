"""Parameter transfer: an encoder's weights learn from how users relate the items it reads."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from recotransfer.data import Interactions, Items
from recotransfer.encoders import TrainableEncoder, encoder_from_spec, encoder_spec
from recotransfer.encoders.precision import computes_in_bfloat16
from recotransfer.errors import InputError, require
from recotransfer.io.artifacts import digest_of_events
from recotransfer.settings import Decay, NonNegativeInt, Positive, PositiveInt, check_settings
from recotransfer.transfer.base import Tuner
from recotransfer.transfer.objectives import OBJECTIVES, Batch, Ints, Objective, Related, related
from recotransfer.transfer.training import TrainingRun, digest_of_content, ended, model_of

_WARMUP, _WEIGHT_DECAY, _CLIP = 0.1, 0.01, 1.0
_NEW = 10.0  # heads and LoRA begin at nothing and learn so many times faster than pretrained weights
_MEMORY = 2 << 30  # bytes that a batch may keep for the backward pass before its gradients are cached
_SAVE_SECONDS = 60.0


class FineTune(Tuner):
    """The encoder trained on relations of users and items, by one of three objectives.

    "labels" puts a linear head on the pooled features: cross-entropy over users where an item has one, else binary
    cross-entropy for each. The head is fitted on the frozen features first, or it would distort them (Kumar et al.,
    "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022).
    "pairs" draws an item and one that a user has beside it, and asks for the second among all items of the batch, by
    cosine / 0.05. Logits are corrected by how often an item is drawn (Yi et al., "Sampling-bias-corrected neural
    modeling for large corpus item recommendations", 2019).
    "elsa" lets the cosines of a batch of users' items rebuild the users' rows, X near X (A A' - I), as beeFormer does
    (Vančura et al., "beeFormer: bridging the gap between semantic and interaction similarity in recommender systems",
    2024).

    A tenth of the items, at most 1000, is held out. After each epoch labels are predicted for them, or they are ranked
    for their users as new items; the weights of the best epoch are kept, the untrained ones included, and two epochs
    without a better one end the training. Batches too large for 2 GiB are taken in pieces whose gradients add up to
    the same (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021). AdamW with
    linear warm-up and decay, in bfloat16 where the machine computes in it.

    Vectors of the items trained on know who took them, those of other items do not: what is built on both sees better
    neighbours among the former.

    Args:
        folder: where checkpoints, the report and the tuned model go; a killed run goes on from there, a finished one is
            only read. It must stay while the encoder is used; a saved task has a copy of its own.
        objective: see above; "auto" is "labels" where every item has one user, else "pairs".
        epochs: at most so many passes over the items.
        learning_rate: of pretrained weights above the layers; heads and LoRA learn ten times as fast.
        batch_size: items of a step ("labels", "elsa"), or pairs.
        trainable_layers: how many top layers learn; None is all, embeddings included. "gradual" begins with one and
            adds one each epoch (Howard and Ruder, "Universal language model fine-tuning for text classification",
            2018).
        layer_decay: each layer learns so many times as fast as the one above it.
        lora: rank of low-rank updates that learn in place of the weights and are merged into them at the end (Hu et
            al., "LoRA: low-rank adaptation of large language models", 2021); None trains the weights themselves.
        augment: called with a value and a random generator before each use in training, returns the value to use.
        seed: random seed.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        objective: Literal["auto", "labels", "pairs", "elsa"] = "auto",
        epochs: PositiveInt = 4,
        learning_rate: Positive = 5e-5,
        batch_size: PositiveInt = 128,
        trainable_layers: NonNegativeInt | Literal["gradual"] | None = None,
        layer_decay: Decay = 0.9,
        lora: PositiveInt | None = None,
        augment: Callable[[Any, np.random.Generator], Any] | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.folder = folder
        self.objective = objective
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.trainable_layers = trainable_layers
        self.layer_decay = layer_decay
        self.lora = lora
        self.augment = augment
        self.seed = seed

    def tune(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> TrainableEncoder:
        """The tuned encoder, whose model lies below `folder`; `report_` tells the curve and which epoch was kept.

        Raises:
            InputError: settings that cannot be, too few related items with content, or a folder of another run.
        """
        check_settings(self)
        folder = Path(self.folder)
        target = folder / f"{model_of(encoder).removesuffix('-tuned')}-tuned"
        settings = self._facts(encoder, items, relations)
        if report := ended(folder, target, settings):
            self.report_ = report
            return cast(TrainableEncoder, encoder_from_spec({**encoder_spec(encoder), "model": str(target)}))

        data = related(encoder, items, relations)
        run = _Run(self, encoder, data, self._objective(data), settings)
        self.report_ = run.train()
        tuned = encoder.saved(run.best_module(), target)
        run.finish(self.report_)

        return tuned

    def _facts(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> dict[str, Any]:
        """What decides the outcome, as plain JSON."""
        names = (
            "objective",
            "epochs",
            "learning_rate",
            "batch_size",
            "trainable_layers",
            "layer_decay",
            "lora",
            "seed",
        )

        return {
            **{name: getattr(self, name) for name in names},
            "augment": None if self.augment is None else re.sub(" at 0x[0-9a-f]+", "", repr(self.augment)),
            "encoder": encoder.name,
            "items": digest_of_content(items, encoder),
            "relations": digest_of_events(relations),
        }

    def _objective(self, data: Related) -> Objective:
        name = self.objective
        if name == "auto":
            name = "labels" if (np.diff(data.users_of.indptr) == 1).all() else "pairs"

        return OBJECTIVES[name](data, self.batch_size, self.seed)


class _Run(TrainingRun):
    """One training: the module, its optimizer, and where it stands, all of it in the checkpoint."""

    standing = (*TrainingRun.standing, "batch", "lost", "seen", "bytes_per_size")

    def __init__(
        self,
        tuner: FineTune,
        encoder: TrainableEncoder,
        data: Related,
        objective: Objective,
        settings: dict[str, Any],
    ) -> None:
        torch = require("torch")

        super().__init__(tuner.folder, settings)
        self.tuner = tuner
        self.encoder = encoder
        self.data = data
        self.objective = objective
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.half = computes_in_bfloat16()
        self.module = encoder.module()
        self.depths, self.top = _depths(self.module)
        if tuner.lora is not None:
            with _seeded(tuner.seed):
                _add_lora(self.module, tuner.lora, [n for n, depth in self.depths.items() if self._learns(depth)])

        self.module.to(self.device)
        if objective.head is not None:
            objective.head.to(self.device)

        self.groups = self._groups()
        self.optimizer = torch.optim.AdamW([{"params": list(g.params.values())} for g in self.groups], fused=True)
        self.weights = {name: value for group in self.groups for name, value in group.params.items()}
        self.sizes = np.array([len(v) if isinstance(v, str) else 1 for v in data.values])
        self.batch = 0
        self.lost = 0.0
        self.seen = 0
        self.bytes_per_size: float | None = None

    def _learns(self, depth: int) -> bool:
        layers = self.tuner.trainable_layers
        return layers is None or layers == "gradual" or depth > self.top - 1 - layers

    def _groups(self) -> list[_Group]:
        """Weights by layer, those of more than one dimension (which decay) apart from the others."""
        lora = self.tuner.lora is not None
        found: dict[tuple[int, bool, bool], dict[str, Any]] = {}

        for name, value in self.module.named_parameters():
            fresh = "lora_" in name
            depth = self.depths.get(_bare(name), self.top)
            value.requires_grad_(fresh if lora else self._learns(depth))
            if value.requires_grad:
                found.setdefault((depth, fresh, value.ndim > 1), {})[f"module/{name}"] = value

        if self.objective.head is not None:
            for name, value in self.objective.head.named_parameters():
                found.setdefault((self.top, True, value.ndim > 1), {})[f"head/{name}"] = value

        if not found:
            raise InputError(f"trainable_layers={self.tuner.trainable_layers} leaves nothing to train; give more")

        return [
            _Group(
                depth,
                self.tuner.learning_rate * (_NEW if fresh else self.tuner.layer_decay ** (self.top - depth)),
                _WEIGHT_DECAY if decays else 0.0,
                params,
            )
            for (depth, fresh, decays), params in sorted(found.items(), key=lambda pair: pair[0])
        ]

    # -- the loop --------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train up to the best epoch, from where a checkpoint left off; the report."""
        if not self.resume():
            self._validate()

        self.saved_at = time.monotonic()
        while self.epoch < self.tuner.epochs and self.worse < 2:
            self._unfreeze()
            batches = self.objective.epoch(np.random.default_rng([self.tuner.seed, self.epoch]))
            while self.batch < len(batches):
                start = time.monotonic()
                done = (self.epoch + (self.batch + 0.5) / len(batches)) / self.tuner.epochs
                self._set_rates(min(done / _WARMUP, 1.0) * (1 - done))
                self.lost += self._learn(batches[self.batch])
                self.seen += len(batches[self.batch].items)
                self.batch, self.step = self.batch + 1, self.step + 1
                self.spent += time.monotonic() - start
                if time.monotonic() - self.saved_at > _SAVE_SECONDS:
                    self.save()

            self.epoch += 1
            self._validate()
            self.batch, self.lost = 0, 0.0
            self.save()

        return self.report(
            objective=next(name for name, kind in OBJECTIVES.items() if kind is type(self.objective)),
            items=len(self.data.train),
            held_out=len(self.data.valid),
            values_per_second=round(self.seen / max(self.spent, 1e-9), 1),
        )

    def _unfreeze(self) -> None:
        if self.tuner.trainable_layers == "gradual":
            for group in self.groups:
                for value in group.params.values():
                    value.requires_grad_(group.depth >= self.top - 1 - self.epoch)

    def _set_rates(self, share: float) -> None:
        for group, mine in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"], group["weight_decay"] = share * mine.rate, mine.decay

    def _validate(self) -> None:
        start = time.monotonic()
        score = self._score()
        self.spent += time.monotonic() - start
        self.finish_epoch(self.lost / self.batch if self.batch else None, score)

    def _score(self) -> float | None:
        torch = require("torch")

        asked = self.objective.asked
        if not len(asked):
            return None

        self.module.eval()
        with torch.inference_mode():
            pieces = self._pieces(asked, 4)
            rows = torch.cat([self._embed(asked[piece]) for piece in pieces])
            return self.objective.score(rows[_inverse(pieces)])

    def best_module(self) -> Any:
        """The module with the best weights, low-rank updates merged, on the CPU."""
        module = super().best_module()
        if self.tuner.lora is not None:
            _merge_lora(module)

        return module

    # -- one step --------------------------------------------------------------------------------------------------

    def _learn(self, batch: Batch) -> float:
        """The loss of a batch, before one step down its gradient."""
        torch = require("torch")

        self.module.train()

        for part in self.module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.eval()  # small batches would spoil the statistics

        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(batch)
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), _CLIP)
        self.optimizer.step()

        return loss

    def gradients(self, batch: Batch) -> float:
        """The loss of a batch; adds its gradients to the weights', in pieces where it would keep too many bytes."""
        torch = require("torch")

        pieces = self._pieces(batch.items)
        inverse = _inverse(pieces)
        if self.bytes_per_size is None:
            self.bytes_per_size = self._measured(batch.items[pieces[-1]])

        size = sum(len(piece) * self.sizes[batch.items[piece]].max() for piece in pieces)
        if size * self.bytes_per_size <= _MEMORY or len(pieces) == 1:
            rows = torch.cat([self._embed(batch.items[piece], n) for n, piece in enumerate(pieces)])
            loss = self.objective.loss(batch, rows[inverse])
            loss.backward()
            return float(loss.detach())

        with torch.no_grad():
            rows = torch.cat([self._embed(batch.items[piece], n) for n, piece in enumerate(pieces)])

        rows.requires_grad_(True)
        loss = self.objective.loss(batch, rows[inverse])
        loss.backward()
        parts = torch.split(rows.grad, [len(piece) for piece in pieces])

        for n, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
            self._embed(batch.items[piece], n).backward(part)

        return float(loss.detach())

    def _pieces(self, items: Ints, times: int = 1) -> list[Ints]:
        """Places in `items`, by length of the values, cut where a piece is as large as the device likes."""
        size = times * (256 if self.device == "cuda" else 32 if isinstance(self.data.values[0], str) else 8)
        order = np.argsort(self.sizes[items], kind="stable")
        return [order[at : at + size] for at in range(0, len(order), size)]

    def _embed(self, items: Ints, piece: int | None = None) -> Any:
        """(items, dim) float32 vectors; with `piece` as in training, the same at each call of one step."""
        torch = require("torch")

        values = [self.data.values[item] for item in items]
        if piece is not None and self.tuner.augment is not None:
            rng = np.random.default_rng([self.tuner.seed, self.step, piece])
            values = [self.tuner.augment(value, rng) for value in values]

        batch = {name: part.to(self.device) for name, part in self.encoder.collate(values).items()}
        draws = contextlib.nullcontext() if piece is None else _seeded(self.tuner.seed, self.step, piece)
        with draws, torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self.module(batch).pooled.float()

    def _measured(self, items: Ints) -> float:
        """Bytes kept for the backward pass per unit of size."""
        torch = require("torch")

        own = {value.data_ptr() for value in self.module.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Any) -> Any:
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()

            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._embed(items, 0)

        return sum(kept.values()) / float(len(items) * self.sizes[items].max())

    def save(self) -> None:
        """Write the checkpoint."""
        super().save()
        self.saved_at = time.monotonic()


class _Group(NamedTuple):
    """Weights of one depth that learn alike."""

    depth: int
    rate: float
    decay: float
    params: dict[str, Any]


def _inverse(pieces: Sequence[Ints]) -> Ints:
    return np.argsort(np.concatenate(pieces))


@contextlib.contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Torch draws from this seed within, and goes on as before afterwards."""
    torch = require("torch")

    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def _bare(name: str) -> str:
    """The name that a weight had before LoRA wrapped its module."""
    return re.sub(r"\.(base_layer|lora_\w+\.default)(?=\.)", "", name)


def _depths(module: Any) -> tuple[dict[str, int], int]:
    """Depth of every weight, 0 before the layers and 1 in the lowest, and the depth of what comes after the topmost.

    The layers are the longest list of modules; of a model for text and pictures, that for pictures.
    """
    torch = require("torch")

    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList)]
    name, layers = max(lists, key=lambda pair: (len(pair[1]), "vision" in pair[0]), default=("", ()))
    out, depth, top = {}, 0, len(layers) + bool(lists)

    for weight, _ in module.named_parameters():
        if lists and weight.startswith(f"{name}."):
            out[weight] = 1 + int(weight.removeprefix(f"{name}.").split(".")[0])
            depth = top
        else:
            out[weight] = depth

    return out, top


def _add_lora(module: Any, rank: int, weights: Sequence[str]) -> None:
    """Low-rank updates beside the linear maps among `weights`; all else is frozen."""
    torch = require("torch")
    LoraConfig = require("peft").LoraConfig
    inject_adapter_in_model = require("peft").inject_adapter_in_model

    learning = {name.rpartition(".")[0] for name in weights}
    names = [n for n, part in module.named_modules() if isinstance(part, torch.nn.Linear) and n in learning]
    if not names:
        raise InputError("no linear map is to be trained, so LoRA has nothing to update; set lora=None")

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), module)


def _merge_lora(module: Any) -> None:
    BaseTunerLayer = require("peft.tuners.tuners_utils").BaseTunerLayer

    for name, part in list(module.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            above, _, own = name.rpartition(".")
            setattr(module.get_submodule(above), own, part.get_base_layer())
