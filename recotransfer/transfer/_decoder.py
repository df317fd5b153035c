"""What `Translator` is made of: its vocabulary, encoded sources, batches, training run and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from recotransfer.encoders.precision import computes_in_bfloat16
from recotransfer.errors import require
from recotransfer.transfer.training import TrainingRun

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_SPECIAL = ("[PAD]", "[BEGIN]", "[END]", "[UNKNOWN]")
PAD, BEGIN, END, _ = range(4)  # the special tokens' ids, which learning the vocabulary assigns in this order
LONGEST = 128  # maximum length in tokens of targets, in training and in generation
_WEIGHT_DECAY = 0.01
_ROWS = 128  # rows of logits in memory at once: few enough to stay in the processor's cache
SENTENCES = 64  # texts encoded or translated at a time


class Pairs(NamedTuple):
    """Source texts and the target text of each, in the same order."""

    sources: Sequence[str]
    targets: Sequence[str]


class Tokens(NamedTuple):
    """Token ids of sources and targets; targets end with the end token."""

    sources: list[NDArray[np.int64]]
    targets: list[NDArray[np.int64]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(pairs, 2) lengths of target and source."""
        return np.array([(len(t), len(s)) for s, t in zip(self.sources, self.targets, strict=True)], np.int64)


class EncodedSources(NamedTuple):
    """Token states of a frozen encoder, the sources concatenated without padding.

    Attributes:
        states: (tokens, width) bfloat16 or float16.
        begin: (sources + 1,) where each source's tokens begin.
    """

    states: Tensor
    begin: NDArray[np.int64]

    @classmethod
    def of(cls, encoder: Any, pairs: Tokens) -> EncodedSources:
        """The encoder's last hidden states of the sources."""
        torch = require("torch")

        lengths = np.array([len(s) for s in pairs.sources])
        begin = np.concatenate([[0], np.cumsum(lengths)])
        dtype = torch.bfloat16 if computes_in_bfloat16() else torch.float16
        out = torch.empty((int(begin[-1]), encoder.config.hidden_size), dtype=dtype)
        encoder.eval()
        order = np.argsort(lengths, kind="stable")  # batches of similar lengths need little padding

        with torch.no_grad(), torch.autocast(encoder.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            for first in range(0, len(order), SENTENCES):
                rows = order[first : first + SENTENCES]
                ids, mask = (torch.from_numpy(a).to(encoder.device) for a in padded([pairs.sources[i] for i in rows]))
                states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                at = np.concatenate([np.arange(begin[i], begin[i + 1]) for i in rows])
                out[torch.from_numpy(at)] = states[mask.bool()].to(dtype).cpu()

        return cls(out.to(encoder.device), begin)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(rows, longest, width) states, and a (rows, longest) mask that is 1 for tokens and 0 for padding."""
        torch = require("torch")

        lengths = self.begin[rows + 1] - self.begin[rows]
        places = np.arange(lengths.max())
        real = places < lengths[:, None]
        at = np.where(real, self.begin[rows][:, None] + places, 0)
        device = self.states.device

        return self.states[torch.from_numpy(at).to(device)], torch.from_numpy(real.astype(np.int64)).to(device)


class DecoderRun(TrainingRun):
    """The training run of a `Translator`, scored by the validation loss; each best epoch is saved right away.

    Args:
        network: the encoder-decoder.
        save: writes the current model to a folder.
        folder, settings: as in `TrainingRun`.
        train_encoder: whether the encoder is ever trained, so that checkpoints must include it.
    """

    sign = -1

    def __init__(
        self,
        network: Module,
        save: Callable[[Path], None],
        folder: Path,
        settings: dict[str, Any],
        *,
        train_encoder: bool,
    ) -> None:
        torch = require("torch")

        super().__init__(folder, settings)
        self.module = network
        self.save_model = save
        groups: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})  # decoder, encoder

        for name, value in self.module.named_parameters():
            groups[name.startswith("encoder.")][name] = value

        self.weights = groups[0] | (groups[1] if train_encoder else {})
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.values())} for group in groups],
            lr=0.0, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY, fused=True,
        )  # fmt: skip

    def keep(self) -> None:
        """Save the current model as the best."""
        self.save_model(self.folder / "model")

    def set_learning_rates(self, rates: tuple[float, float]) -> None:
        """Set the learning rates of decoder and encoder."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def default_device() -> str:
    """The device to compute on: "cuda" where there is a GPU, else "cpu"."""
    torch = require("torch")

    return "cuda" if torch.cuda.is_available() else "cpu"


def learned_vocabulary(texts: Sequence[str], size: int) -> Any:
    """A byte-pair tokenizer (`tokenizers.Tokenizer`) of at most `size` tokens, learned from the texts."""
    Tokenizer = require("tokenizers").Tokenizer
    decoders = require("tokenizers.decoders")
    models = require("tokenizers.models")
    pre_tokenizers = require("tokenizers.pre_tokenizers")
    trainers = require("tokenizers.trainers")

    out = Tokenizer(models.BPE(unk_token=_SPECIAL[-1]))
    # Punctuation is split off, so that "Mann." and "Mann" share a token.
    out.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    out.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(_SPECIAL), show_progress=False)
    out.train_from_iterator(texts, trainer)

    return out


def batches_of(
    lengths: NDArray[np.int64], size: int, rng: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Batches of rows with similar target and source lengths, each of at most `size` target tokens with padding.

    Args:
        lengths: (pairs, 2) lengths of target and source.
        size: maximum number of target tokens, unless a single target is longer.
        rng: orders rows of equal lengths; None keeps their order.
    """
    ties = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = np.lexsort((ties, lengths[:, 1], lengths[:, 0]))
    out, first = [], 0
    longest = lengths[order, 0]

    for at in range(len(order)):
        if (at + 1 - first) * longest[at] > size and at > first:
            out.append(order[first:at])
            first = at

    return [*out, order[first:]]


def padded(ids: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows, longest) ids padded with 0, and a mask of the same shape that is 1 where there is an id."""
    lengths = np.array([len(row) for row in ids])
    real = np.arange(lengths.max()) < lengths[:, None]
    out = np.zeros(real.shape, np.int64)
    out[real] = np.concatenate(ids)
    return out, real.astype(np.int64)


@cache
def loss_of_rows() -> Callable[..., Any]:
    """The summed cross-entropy of hidden states under a linear layer, computed without ever holding all logits.

    The logits of a few rows at a time are computed, and turned into their gradient while they are in the processor's
    cache. On a CPU this halves the time of a step with a small decoder. The function takes hidden states (n, dim),
    weight, bias, targets (n,) and the label smoothing.
    """
    torch = require("torch")

    base: Any = torch.autograd.Function

    class Loss(base):  # type: ignore[misc]  # torch is untyped here
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float) -> Tensor:
            dtype = hidden.dtype
            inner, size = weight.to(dtype), len(weight)
            total = hidden.new_zeros((), dtype=torch.float32)
            to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
            to_bias = torch.zeros_like(bias)

            for first in range(0, len(hidden), _ROWS):
                rows, wanted = hidden[first : first + _ROWS], target[first : first + _ROWS, None]
                logits = (rows @ inner.T).float() + bias
                norm = logits.logsumexp(dim=1, keepdim=True)
                total += (
                    norm - (1 - smoothing) * logits.gather(1, wanted) - smoothing * logits.mean(1, keepdim=True)
                ).sum()
                slope = logits.sub_(norm).exp_().sub_(smoothing / size)
                slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, smoothing - 1))
                to_bias += slope.sum(0)
                slope = slope.to(dtype)
                to_hidden[first : first + _ROWS] = slope @ inner
                to_weight += slope.T @ rows

            ctx.save_for_backward(to_hidden, to_weight, to_bias)

            return total

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
            # `forward` has already computed the gradients; the incoming one is that of a scalar.
            hidden, weight, bias = ctx.saved_tensors
            return hidden * slopes[0], weight * slopes[0], bias * slopes[0], None, None

    return cast(Callable[..., Any], Loss.apply)
