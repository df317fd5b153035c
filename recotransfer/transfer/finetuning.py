"""Parameter transfer: an encoder's weights are fine-tuned on user-item relations."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

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

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_WARMUP, _WEIGHT_DECAY, _CLIP = 0.1, 0.01, 1.0  # share of the training, AdamW's weight decay, greatest gradient norm
_NEW = 10.0  # learning rate of heads and LoRA, which start from scratch, relative to that of pretrained weights
_MEMORY = 2 << 30  # bytes of activations above which a batch is split by gradient caching
_SAVE_SECONDS = 60.0  # time between checkpoints within an epoch


class FineTune(Tuner):
    """Fine-tunes an encoder on user-item relations, with one of three objectives.

    "labels" trains a linear head on the pooled features: cross-entropy over users where every item has exactly one,
    else binary cross-entropy per user. The head is first fitted on the frozen features, since a random head would
    distort them (Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
    2022).
    "pairs" draws an item and another item of the same user, and classifies the second among all items of the batch by
    a softmax over cosines at temperature 0.05, with logits corrected for sampling frequency (Yi et al.,
    "Sampling-bias-corrected neural modeling for large corpus item recommendations", 2019).
    "elsa" reconstructs users' interaction rows from the cosines of the batch's items, X ~ X (A A' - I), as beeFormer
    does (Vančura et al., "beeFormer: bridging the gap between semantic and interaction similarity in recommender
    systems", 2024).

    A tenth of the items, at most 1000, is held out for validation: after each epoch their labels are predicted, or they
    are ranked for their users as new items. The best weights are kept, which may be the untrained ones; training stops
    after two epochs without improvement. Batches whose activations exceed 2 GiB are split by gradient caching, which
    gives the same gradients (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup",
    2021). The optimizer is AdamW with linear warm-up and decay, in bfloat16 where the hardware supports it.

    The vectors of training items encode who interacted with them; those of other items do not. A model built on both
    therefore sees better neighbours among training items than it will among new ones.

    Args:
        folder: for checkpoints, the report and the tuned model. An interrupted run resumes from it; a finished run is
            loaded from it. Keep it while the encoder is in use; a saved task has its own copy.
        objective: see above; "auto" is "labels" where every item has exactly one user, else "pairs".
        epochs: maximum number of passes over the items.
        learning_rate: for pretrained weights above the layers; heads and LoRA learn ten times as fast.
        batch_size: items per step ("labels", "elsa"), or pairs per step ("pairs").
        trainable_layers: number of top layers to train; None trains all, embeddings included. "gradual" starts with one
            and unfreezes one more each epoch (Howard and Ruder, "Universal language model fine-tuning for text
            classification", 2018).
        layer_decay: learning rate of each layer relative to the layer above it.
        lora: rank of the low-rank updates that are trained instead of the weights and merged into them at the end (Hu
            et al., "LoRA: low-rank adaptation of large language models", 2021); None trains the weights themselves.
        augment: called with a value and a random generator each time the value is used in training; returns the
            augmented value.
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
        """The tuned encoder, with its model saved under `folder`; `report_` has the learning curve and the best epoch.

        Raises:
            InputError: invalid settings, too few related items with content, or a folder that holds another run.
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
        """Everything that determines the result, as plain JSON; a run is resumed only if all of it is unchanged."""
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
            # The repr of a function contains its address, which differs in each process.
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
    """One fine-tuning run: module, optimizer and progress, all of which the checkpoint stores.

    Attributes:
        batch: batches done in the current epoch; `lost` is the sum of their losses.
        seen: items processed since the start, for the throughput in the report.
        sizes: (items,) length of each text in characters, 1 for other values.
        bytes_per_size: activation memory per unit of size, measured on the first batch.
    """

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
        """Whether weights at this depth are ever trained."""
        layers = self.tuner.trainable_layers
        return layers is None or layers == "gradual" or depth > self.top - 1 - layers

    def _groups(self) -> list[_Group]:
        """Parameter groups by layer; weight decay applies to matrices only, so vectors have groups of their own."""
        lora = self.tuner.lora is not None
        found: dict[tuple[int, bool, bool], dict[str, Tensor]] = {}

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
            raise InputError(f"trainable_layers={self.tuner.trainable_layers} leaves nothing to train; increase it")

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
        """Train until validation stops improving, resuming from a checkpoint if there is one; returns the report."""
        if not self.resume():
            self._validate()  # the untrained weights, which are kept if no epoch beats them

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
        """With "gradual", train one layer more than in the previous epoch."""
        if self.tuner.trainable_layers == "gradual":
            for group in self.groups:
                for value in group.params.values():
                    value.requires_grad_(group.depth >= self.top - 1 - self.epoch)

    def _set_rates(self, share: float) -> None:
        """Set each group's learning rate to this share of its peak."""
        for group, ours in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"], group["weight_decay"] = share * ours.rate, ours.decay

    def _validate(self) -> None:
        start = time.monotonic()
        score = self._score()
        self.spent += time.monotonic() - start
        self.finish_epoch(self.lost / self.batch if self.batch else None, score)

    def _score(self) -> float | None:
        torch = require("torch")

        items = self.objective.scored_items
        if not len(items):
            return None

        self.module.eval()
        with torch.inference_mode():
            pieces = self._pieces(items, 4)  # without activations to keep, larger pieces fit
            rows = torch.cat([self._embed(items[piece]) for piece in pieces])
            return self.objective.score(rows[_inverse(pieces)])

    def best_module(self) -> Module:
        """The module with the best weights, LoRA updates merged, on the CPU."""
        module = super().best_module()
        if self.tuner.lora is not None:
            _merge_lora(module)

        return module

    # -- one step --------------------------------------------------------------------------------------------------

    def _learn(self, batch: Batch) -> float:
        """Take one optimizer step on a batch; returns the loss before the step."""
        torch = require("torch")

        self.module.train()

        for layer in self.module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()  # small batches would spoil the running statistics

        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(batch)
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), _CLIP)
        self.optimizer.step()

        return loss

    def gradients(self, batch: Batch) -> float:
        """The loss of a batch, after adding its gradients to those of the weights.

        Where the activations of the whole batch would take too much memory, gradients are cached: one pass without
        activations gives the vectors and the loss's gradient for them, a second one carries it back piece by piece.
        """
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
        gradients = torch.split(rows.grad, [len(piece) for piece in pieces])

        for n, (piece, gradient) in enumerate(zip(pieces, gradients, strict=True)):
            self._embed(batch.items[piece], n).backward(gradient)

        return float(loss.detach())

    def _pieces(self, items: Ints, times: int = 1) -> list[Ints]:
        """Positions in `items`, sorted by length of the values and cut into pieces that suit the device."""
        size = times * (256 if self.device == "cuda" else 32 if isinstance(self.data.values[0], str) else 8)
        order = np.argsort(self.sizes[items], kind="stable")
        return [order[at : at + size] for at in range(0, len(order), size)]

    def _embed(self, items: Ints, piece: int | None = None) -> Tensor:
        """(items, dim) float32 vectors.

        With `piece`, values are augmented as in training. Augmentation and dropout are seeded by step and piece, so
        that both passes of gradient caching see the same.
        """
        torch = require("torch")

        values = [self.data.values[item] for item in items]
        if piece is not None and self.tuner.augment is not None:
            rng = np.random.default_rng([self.tuner.seed, self.step, piece])
            values = [self.tuner.augment(value, rng) for value in values]

        batch = {name: tensor.to(self.device) for name, tensor in self.encoder.collate(values).items()}
        seeded = contextlib.nullcontext() if piece is None else _seeded(self.tuner.seed, self.step, piece)
        with seeded, torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self.module(batch).pooled.float()

    def _measured(self, items: Ints) -> float:
        """Bytes of activations kept for the backward pass, per unit of size, measured on these items."""
        torch = require("torch")

        weights = {value.data_ptr() for value in self.module.parameters()}  # kept anyway, so they do not count
        saved: dict[int, int] = {}

        def record(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()

            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            self._embed(items, 0)

        return sum(saved.values()) / float(len(items) * self.sizes[items].max())

    def save(self) -> None:
        """Write the checkpoint."""
        super().save()
        self.saved_at = time.monotonic()


class _Group(NamedTuple):
    """Weights of one depth with the same peak learning rate and weight decay."""

    depth: int
    rate: float
    decay: float
    params: dict[str, Tensor]


def _inverse(pieces: Sequence[Ints]) -> Ints:
    """The permutation that puts rows computed piece by piece back in order."""
    return np.argsort(np.concatenate(pieces))


@contextlib.contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Seed torch within the block and restore its generator's state afterwards."""
    torch = require("torch")

    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def _bare(name: str) -> str:
    """The name of a weight before LoRA wrapped its module."""
    return re.sub(r"\.(base_layer|lora_\w+\.default)(?=\.)", "", name)


def _depths(module: Module) -> tuple[dict[str, int], int]:
    """The depth of every weight by name, and the depth of whatever follows the last layer.

    Depth is 0 before the layers and 1 in the lowest one. The layers are the longest `ModuleList`; where the text and
    image towers of a model have equally many, that of the image tower.
    """
    torch = require("torch")

    lists = [(name, inner) for name, inner in module.named_modules() if isinstance(inner, torch.nn.ModuleList)]
    name, layers = max(lists, key=lambda pair: (len(pair[1]), "vision" in pair[0]), default=("", ()))
    out, depth, top = {}, 0, len(layers) + bool(lists)

    for weight, _ in module.named_parameters():
        if lists and weight.startswith(f"{name}."):
            out[weight] = 1 + int(weight.removeprefix(f"{name}.").split(".")[0])
            depth = top
        else:
            out[weight] = depth

    return out, top


def _add_lora(module: Module, rank: int, weights: Sequence[str]) -> None:
    """Add trainable low-rank updates to the linear layers among `weights` and freeze everything else."""
    torch = require("torch")
    LoraConfig = require("peft").LoraConfig
    inject_adapter_in_model = require("peft").inject_adapter_in_model

    learning = {name.rpartition(".")[0] for name in weights}
    names = [n for n, layer in module.named_modules() if isinstance(layer, torch.nn.Linear) and n in learning]
    if not names:
        raise InputError("no linear layer is among the trained weights, so LoRA has nothing to update; set lora=None")

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), module)


def _merge_lora(module: Module) -> None:
    """Add the low-rank updates to the weights and put the plain layers back, so that no wrapper is saved."""
    BaseTunerLayer = require("peft.tuners.tuners_utils").BaseTunerLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, layer.get_base_layer())
