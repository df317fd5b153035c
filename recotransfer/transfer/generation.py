"""Text from text: a decoder trained on top of a pretrained text encoder, as for translation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from recotransfer.artifacts import Artifact, ArtifactWriter, digest, open_artifact, write_artifact
from recotransfer.encoders.base import quiet_loading
from recotransfer.encoders.text import SentenceText, computes_in_bfloat16
from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.transfer.base import Resumable, ended
from recotransfer.uncertainty import Difference, Estimate, resampled

_SPECIAL = ("[PAD]", "[BEGIN]", "[END]", "[UNKNOWN]")
_PAD, _BEGIN, _END, _ = range(4)
_LONGEST = 128  # tokens of a target that are learned from, and of one that is written
_HEAD = 64  # width of an attention head
_DROPOUT = 0.1
_SMOOTHING = 0.1  # share of a target's probability that is spread over all tokens
_WARM_UP = 0.1  # share of the steps in which the step size grows
_WEIGHT_DECAY = 0.01
_CLIP = 1.0  # longest gradient
_ROWS = 128  # rows of logits held at once: few enough to stay in the processor's cache
_SENTENCES = 64  # translated at a time


class Pairs(NamedTuple):
    """Texts and what should be written from each, in the same order."""

    sources: Sequence[str]
    targets: Sequence[str]


class Translator:
    """Texts written from texts: a pretrained encoder with a small decoder on top that attends to its token states.

    The warm-started encoder-decoder of Rothe, Narayan and Severyn, "Leveraging pre-trained checkpoints for sequence
    generation tasks" (2020), trained with label smoothing (Szegedy et al., 2016). The decoder has a byte-pair
    vocabulary of its own, learned from the targets. While the encoder is frozen, its token states are computed once
    and kept in memory at 2 bytes per number, so that a step costs the decoder's part alone.

    Args:
        vocabulary: tokens of the target side.
        dim: width of the decoder, a multiple of 64.
        layers: of the decoder.
        epochs: passes over the pairs.
        encoder_epochs: the last so many of them change the encoder as well; all, for an encoder that knows nothing.
        learning_rate: greatest step size of the decoder.
        encoder_learning_rate: greatest step size of the encoder.
        batch_size: target tokens per step.
        patience: epochs without a lower loss on the validation pairs after which training stops.
        rng: seed.

    Attributes:
        report_: plain JSON: settings, curve [{epoch, step, loss, valid, seconds}], best epoch, seconds.
    """

    report_: dict[str, Any]

    def __init__(
        self,
        *,
        vocabulary: int = 4000,
        dim: int = 256,
        layers: int = 3,
        epochs: int = 12,
        encoder_epochs: int = 0,
        learning_rate: float = 2e-3,
        encoder_learning_rate: float = 1e-4,
        batch_size: int = 2048,
        patience: int = 3,
        rng: int = 0,
    ) -> None:
        self.vocabulary, self.dim, self.layers, self.epochs = vocabulary, dim, layers, epochs
        self.encoder_epochs, self.batch_size, self.patience, self.rng = encoder_epochs, batch_size, patience, rng
        self.learning_rate, self.encoder_learning_rate = learning_rate, encoder_learning_rate

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(self, encoder: SentenceText, train: Pairs, valid: Pairs, *, folder: str | Path) -> Self:
        """Learn to write the targets; returns self with the weights of the epoch that did best on `valid`.

        Each epoch leaves a checkpoint in `folder`; a killed run, called again, goes on from there and ends with the
        same model up to floating point, a finished one is only read. The model itself is in `folder`/model, for `load`.

        Args:
            encoder: a text encoder whose network is a transformer.
            train: what to learn from.
            valid: pairs that tell when to stop.
            folder: of this run alone.

        Raises:
            InputError: settings that cannot be, a folder of another run, or no epoch with a finite loss on `valid`.
        """
        self._check(train, valid)
        folder = Path(folder)
        settings = {**self.params(), "encoder": encoder.name, "texts": digest(*map(list, (*train, *valid)))}
        if report := ended(folder, folder / "model", settings):
            self.report_ = report
            return self._open(open_artifact(folder / "model"))
        self._build(encoder, train)
        run = _Run(self, folder, settings)
        run.resume()
        told = self._tokens(train), self._tokens(valid)
        batches = [_batches(each.lengths, self.batch_size) for each in told]
        states: list[_States] = []
        while run.epoch < self.epochs and run.worse < self.patience:
            tuning = run.epoch >= self.epochs - self.encoder_epochs
            if tuning:
                states = []
            elif not states:
                states = [_States.of(self.network_.encoder, each) for each in told]
            frozen = states if states else (None, None)
            begin = time.perf_counter()
            loss = self._epoch(run, told[0], frozen[0], len(batches[0]))
            held = self._loss(told[1], frozen[1], batches[1])
            run.spent += time.perf_counter() - begin
            run.epoch += 1
            run.finish_epoch(round(loss, 5), round(held, 5))
            run.save()
        if all(point["valid"] is None for point in run.curve):
            raise InputError(f"no epoch had a finite loss; lower learning_rate and give a new folder, not {folder}")
        self.report_ = run.report()
        run.finish(self.report_)
        return self._open(open_artifact(folder / "model"))

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_")}

    def _check(self, train: Pairs, valid: Pairs) -> None:
        for name, pairs in (("train", train), ("valid", valid)):
            if len(pairs.sources) != len(pairs.targets) or not len(pairs.sources):
                counts = f"{len(pairs.sources)} sources and {len(pairs.targets)} targets"
                raise InputError(f"{name} has {counts}; give one of each per pair, and one pair at least")
        if self.dim < _HEAD or self.dim % _HEAD:
            raise InputError(f"dim is {self.dim}; it must be a multiple of {_HEAD}, the width of an attention head")
        if not 0 <= self.encoder_epochs <= self.epochs:
            raise InputError(f"encoder_epochs is {self.encoder_epochs}; it must lie in 0..epochs, here {self.epochs}")

    def _build(self, encoder: SentenceText, pairs: Pairs) -> None:
        """Both tokenizers and the network, its decoder not trained."""
        import torch
        from transformers import BertConfig, BertLMHeadModel, EncoderDecoderModel

        self.source_ = encoder.network[0].tokenizer
        self.longest_source_ = int(encoder.network.max_seq_length or 512)
        self.target_ = _vocabulary(pairs.targets, self.vocabulary)
        # On short texts the backward pass of torch's fused attention takes longer than all else together.
        inner = encoder.network[0].auto_model
        with quiet_loading(), torch.random.fork_rng():
            torch.manual_seed(self.rng)
            config = BertConfig(
                vocab_size=self.target_.get_vocab_size(), hidden_size=self.dim, num_hidden_layers=self.layers,
                num_attention_heads=self.dim // _HEAD, intermediate_size=4 * self.dim, is_decoder=True,
                add_cross_attention=True, max_position_embeddings=_LONGEST + 2, hidden_dropout_prob=_DROPOUT,
                attention_probs_dropout_prob=0.0, pad_token_id=_PAD, bos_token_id=_BEGIN, eos_token_id=_END,
                initializer_range=self.dim**-0.5, attn_implementation="eager",
            )  # fmt: skip
            own = type(inner)(inner.config)
            own.load_state_dict(inner.state_dict())
            own.set_attn_implementation("eager")
            network = EncoderDecoderModel(encoder=own, decoder=BertLMHeadModel(config)).to(_device())
            if (bridge := getattr(network, "enc_to_dec_proj", None)) is not None:
                # States of some encoders are small, and a decoder would be slow to notice them.
                some = _States.of(own, self._tokens(Pairs(pairs.sources[:_SENTENCES], []))).states.float()
                torch.nn.init.normal_(bridge.weight, std=float(some.square().sum(dim=1).mean()) ** -0.5)
        network.config.decoder_start_token_id, network.config.pad_token_id = _BEGIN, _PAD
        network.config.eos_token_id = _END
        self.network_ = network

    def _tokens(self, pairs: Pairs) -> _Tokens:
        sources = self.source_(list(pairs.sources), truncation=True, max_length=self.longest_source_)["input_ids"]
        targets = [e.ids[: _LONGEST - 1] for e in self.target_.encode_batch(list(pairs.targets))]
        return _Tokens([np.asarray(s, np.int64) for s in sources], [np.asarray([*t, _END], np.int64) for t in targets])

    def _epoch(self, run: _Run, told: _Tokens, states: _States | None, steps: int) -> float:
        """One pass; returns the mean loss per target token."""
        import torch

        generator = np.random.default_rng([self.rng, run.epoch])
        batches = _batches(told.lengths, self.batch_size, generator)
        generator.shuffle(batches)
        tuning = states is None
        self.network_.encoder.requires_grad_(tuning).train(tuning)
        self.network_.decoder.train()
        total, tokens = 0.0, 0
        with torch.random.fork_rng():
            torch.manual_seed(int(generator.integers(1 << 31)))
            for at, rows in enumerate(batches):
                run.set_pace(self._pace((run.epoch * steps + at + 1) / (self.epochs * steps)))
                summed, n = self._batch_loss(told, states, rows, _SMOOTHING)
                (summed / n).backward()
                torch.nn.utils.clip_grad_norm_(self.network_.parameters(), _CLIP)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
                run.step += 1
                total, tokens = total + float(summed.detach()), tokens + n
        return total / tokens

    def _pace(self, done: float) -> tuple[float, float]:
        """Step sizes of decoder and encoder when this share of all steps is done: up, then down to nothing."""
        begin = 1 - self.encoder_epochs / self.epochs
        share = max(0.0, (done - begin) / (1 - begin)) if begin < 1 else 0.0

        def at(part: float) -> float:
            return min(part / _WARM_UP, (1 - part) / (1 - _WARM_UP))

        return self.learning_rate * at(done), self.encoder_learning_rate * at(share)

    def _loss(self, told: _Tokens, states: _States | None, batches: Sequence[NDArray[np.int64]]) -> float:
        import torch

        self.network_.eval()
        with torch.no_grad():
            sums = [self._batch_loss(told, states, rows, 0.0) for rows in batches]
        return float(sum(float(loss) for loss, _ in sums) / sum(n for _, n in sums))

    def _batch_loss(
        self, told: _Tokens, states: _States | None, rows: NDArray[np.int64], smoothing: float
    ) -> tuple[Any, int]:
        """Summed loss of the target tokens of a batch, and their number."""
        import torch

        network, device = self.network_, self.network_.device
        decoder = network.decoder
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16() == "bfloat16"):
            if states is None:
                ids, mask = (torch.from_numpy(a).to(device) for a in _padded([told.sources[i] for i in rows]))
                context = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            else:
                context, mask = states.batch(rows)
            if hasattr(network, "enc_to_dec_proj"):
                context = network.enc_to_dec_proj(context.float())
            target, real = (torch.from_numpy(a).to(device) for a in _padded([told.targets[i] for i in rows]))
            given = torch.cat([torch.full_like(target[:, :1], _BEGIN), target[:, :-1]], dim=1)
            hidden = decoder.bert(
                input_ids=given, encoder_hidden_states=context, encoder_attention_mask=mask, use_cache=False
            ).last_hidden_state
            hidden = decoder.cls.predictions.transform(hidden[real.bool()])
        last = decoder.cls.predictions.decoder
        return _loss_of_rows()(hidden, last.weight, last.bias, target[real.bool()], smoothing), int(real.sum())

    # -- writing -------------------------------------------------------------------------------------------------------

    def translate(self, sources: Sequence[str], *, beams: int = 4) -> list[str]:
        """What is written from each source, in order.

        Args:
            sources: texts.
            beams: beginnings followed at a time; 1 takes the likeliest token at each step.
        """
        import torch

        if not hasattr(self, "network_"):
            raise NotFittedError(f"this {type(self).__name__} has not learned anything; call fit or load first")
        told = self._tokens(Pairs(sources, []))
        out = [""] * len(sources)
        order = np.argsort([len(s) for s in told.sources], kind="stable")
        network = self.network_.eval()
        with (
            torch.inference_mode(),
            torch.autocast(network.device.type, torch.bfloat16, enabled=computes_in_bfloat16() == "bfloat16"),
        ):
            for first in range(0, len(order), _SENTENCES):
                rows = order[first : first + _SENTENCES]
                ids, mask = (torch.from_numpy(a).to(network.device) for a in _padded([told.sources[i] for i in rows]))
                longest = min(_LONGEST, 2 * ids.shape[1] + 10)
                written = network.generate(
                    input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=longest, do_sample=False,
                    decoder_start_token_id=_BEGIN, pad_token_id=_PAD, eos_token_id=_END, early_stopping=beams > 1,
                )  # fmt: skip
                for row, text in zip(rows, self.target_.decode_batch(written.tolist()), strict=True):
                    out[row] = text
        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        writer.json("translator", self.params())
        writer.json("limits", {"source": self.longest_source_})
        writer.json("target", self.target_.to_str())
        with tempfile.TemporaryDirectory() as name, quiet_loading():
            for part, holder in (("network", self.network_), ("source", self.source_)):
                holder.save_pretrained(Path(name) / part)
                writer.folder_of_model(part, Path(name) / part)

    def _open(self, artifact: Artifact) -> Self:
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer, EncoderDecoderModel

        self.longest_source_ = artifact.json("limits")["source"]
        self.target_ = Tokenizer.from_str(artifact.json("target"))
        with quiet_loading():
            self.source_ = AutoTokenizer.from_pretrained(artifact.folder_of_model("source"))
            self.network_ = EncoderDecoderModel.from_pretrained(artifact.folder_of_model("network")).to(_device())
        self.network_.eval()
        return self

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The translator that a `fit` with this folder left there; of an unfinished run, the best epoch so far."""
        artifact = open_artifact(Path(folder) / "model")
        if artifact.class_name != cls.__name__:
            raise ArtifactError(f"{folder} holds a {artifact.class_name}, not a {cls.__name__}")
        return cls(**artifact.json("translator"))._open(artifact)


# -- how good --------------------------------------------------------------------------------------------------------


def bleu(written: Sequence[str], wanted: Sequence[str], *, draws: int = 1000) -> Estimate:
    """Corpus BLEU in percent, as sacrebleu gives it by default, with its 95% bootstrap interval over sentences.

    Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (2002); Post, "A call for clarity
    in reporting BLEU scores" (2018).
    """
    counts = _ngram_counts(written, wanted)
    values = resampled(lambda rows: _corpus_bleu(counts[rows]), np.arange(len(counts)), draws=draws)
    return Estimate(_corpus_bleu(counts), *(float(p) for p in np.percentile(values, [2.5, 97.5])))


def bleu_gain(
    written: Sequence[str], against: Sequence[str], wanted: Sequence[str], *, draws: int = 1000
) -> Difference:
    """BLEU of `written` above that of `against`, with the paired bootstrap of Koehn (2004) over sentences.

    p is twice the share of draws on the wrong side of 0, 1 / draws at least.
    """
    mine, theirs = _ngram_counts(written, wanted), _ngram_counts(against, wanted)
    values = resampled(lambda r: _corpus_bleu(mine[r]) - _corpus_bleu(theirs[r]), np.arange(len(mine)), draws=draws)
    low, high = np.percentile(values, [2.5, 97.5])
    p = max(2 * min(float((values <= 0).mean()), float((values >= 0).mean())), 1 / draws)
    return Difference(_corpus_bleu(mine) - _corpus_bleu(theirs), float(low), float(high), min(p, 1.0))


def _ngram_counts(written: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """(sentences, 10): n-grams found right and n-grams written, for n = 1 to 4, and both lengths."""
    from sacrebleu.metrics.bleu import BLEU

    if len(written) != len(wanted) or not len(written):
        raise InputError(f"{len(written)} texts written and {len(wanted)} wanted; give one of each per sentence")
    meter = BLEU(effective_order=True)
    found = [meter.sentence_score(text, [truth]) for text, truth in zip(written, wanted, strict=True)]
    return np.array([[*f.counts, *f.totals, f.sys_len, f.ref_len] for f in found], np.int64)


def _corpus_bleu(counts: NDArray[np.int64]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    total = counts.sum(axis=0).tolist()
    return float(BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9]).score)


# -- inside ------------------------------------------------------------------------------------------------------------


class _Tokens(NamedTuple):
    """Token ids of sources and targets; targets end with the end token."""

    sources: list[NDArray[np.int64]]
    targets: list[NDArray[np.int64]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(pairs, 2) lengths of target and source."""
        return np.array([(len(t), len(s)) for s, t in zip(self.sources, self.targets, strict=True)], np.int64)


class _States(NamedTuple):
    """Token states of a frozen encoder, all sources end to end.

    Attributes:
        states: (tokens, width) in 2 bytes.
        begin: (sources + 1,) where each source's tokens begin.
    """

    states: Any
    begin: NDArray[np.int64]

    @classmethod
    def of(cls, encoder: Any, told: _Tokens) -> _States:
        """What the encoder gives for the sources."""
        import torch

        lengths = np.array([len(s) for s in told.sources])
        begin = np.concatenate([[0], np.cumsum(lengths)])
        kind = torch.bfloat16 if computes_in_bfloat16() == "bfloat16" else torch.float16
        out = torch.empty((int(begin[-1]), encoder.config.hidden_size), dtype=kind)
        encoder.eval()
        order = np.argsort(lengths, kind="stable")
        with torch.no_grad(), torch.autocast(encoder.device.type, torch.bfloat16, enabled=kind is torch.bfloat16):
            for first in range(0, len(order), _SENTENCES):
                rows = order[first : first + _SENTENCES]
                ids, mask = (torch.from_numpy(a).to(encoder.device) for a in _padded([told.sources[i] for i in rows]))
                found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                at = np.concatenate([np.arange(begin[i], begin[i + 1]) for i in rows])
                out[torch.from_numpy(at)] = found[mask.bool()].to(kind).cpu()
        return cls(out.to(encoder.device), begin)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Any, Any]:
        """(rows, longest, width) states and (rows, longest) 1 where a state is real."""
        import torch

        lengths = self.begin[rows + 1] - self.begin[rows]
        places = np.arange(lengths.max())
        real = places < lengths[:, None]
        at = np.where(real, self.begin[rows][:, None] + places, 0)
        device = self.states.device
        return self.states[torch.from_numpy(at).to(device)], torch.from_numpy(real.astype(np.int64)).to(device)


class _Run(Resumable):
    """One training, by the loss on the validation pairs; the best weights are in the model that it leaves."""

    sign = -1

    def __init__(self, translator: Translator, folder: Path, settings: dict[str, Any]) -> None:
        import torch

        super().__init__(folder, settings)
        self.translator, self.module = translator, translator.network_
        groups: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, value in self.module.named_parameters():
            groups[name.startswith("encoder.")][name] = value
        self.weights = groups[0] | (groups[1] if translator.encoder_epochs else {})
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.values())} for group in groups],
            lr=0.0, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY, fused=True,
        )  # fmt: skip

    def keep(self) -> None:
        """Write the model as it is."""
        write_artifact(self.folder / "model", type(self.translator).__name__, self.translator._write)

    def set_pace(self, rates: tuple[float, float]) -> None:
        """Step sizes of decoder and encoder."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _vocabulary(texts: Sequence[str], size: int) -> Any:
    """A byte-pair tokenizer with at most `size` tokens, learned from the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    out = Tokenizer(models.BPE(unk_token=_SPECIAL[-1]))
    # Marks of their own words, as they stand apart from the word before: "Mann." and "Mann" share a token.
    out.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    out.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(_SPECIAL), show_progress=False)
    out.train_from_iterator(texts, trainer)
    return out


def _batches(lengths: NDArray[np.int64], size: int, rng: np.random.Generator | None = None) -> list[NDArray[np.int64]]:
    """Rows of like target and source lengths, at most `size` target tokens with padding; ties fall by lot."""
    lot = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = np.lexsort((lot, lengths[:, 1], lengths[:, 0]))
    out, first = [], 0
    longest = lengths[order, 0]
    for at in range(len(order)):
        if (at + 1 - first) * longest[at] > size and at > first:
            out.append(order[first:at])
            first = at
    return [*out, order[first:]]


def _padded(ids: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows, longest) ids, 0 past the end, and 1 where there is an id."""
    lengths = np.array([len(row) for row in ids])
    real = np.arange(lengths.max()) < lengths[:, None]
    out = np.zeros(real.shape, np.int64)
    out[real] = np.concatenate(ids)
    return out, real.astype(np.int64)


@cache
def _loss_of_rows() -> Callable[..., Any]:
    """Summed cross-entropy of hidden rows with a linear map on top, without ever holding all logits.

    Logits of a few rows at a time are made, and turned into their gradient, while they are in the processor's cache;
    on a CPU that halves the time of a step with a small decoder.
    """
    import torch

    class Loss(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, target: Any, smoothing: float) -> Any:
            kind = hidden.dtype
            inner, size = weight.to(kind), len(weight)
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
                slope = slope.to(kind)
                to_hidden[first : first + _ROWS] = slope @ inner
                to_weight += slope.T @ rows
            ctx.save_for_backward(to_hidden, to_weight, to_bias)
            return total

        @staticmethod
        def backward(ctx: Any, *slopes: Any) -> Any:
            hidden, weight, bias = ctx.saved_tensors
            return hidden * slopes[0], weight * slopes[0], bias * slopes[0], None, None

    return cast(Callable[..., Any], Loss.apply)
