"""Text from text: a decoder trained on top of a pretrained text encoder, as for translation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.encoders import SentenceText
from recotransfer.encoders.models import quiet_loading
from recotransfer.encoders.precision import computes_in_bfloat16
from recotransfer.errors import ArtifactError, InputError, NotFittedError, require
from recotransfer.io.artifacts import Artifact, ArtifactWriter, digest, open_artifact, write_artifact
from recotransfer.settings import NonNegativeInt, Positive, PositiveInt, check_settings
from recotransfer.transfer._decoder import (
    BEGIN,
    END,
    LONGEST,
    PAD,
    SENTENCES,
    DecoderRun,
    EncodedSources,
    Pairs,
    Tokens,
    batches_of,
    default_device,
    learned_vocabulary,
    loss_of_rows,
    padded,
)
from recotransfer.transfer.training import ended

_HEAD = 64  # width of an attention head
_DROPOUT = 0.1
_SMOOTHING = 0.1  # share of a target's probability that is spread over all tokens
_WARM_UP = 0.1  # share of the steps in which the step size grows
_CLIP = 1.0  # longest gradient


@checked_class
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
        seed: random seed.

    Attributes:
        report_: plain JSON: settings, curve [{epoch, step, loss, valid, seconds}], best epoch, seconds.
    """

    report_: dict[str, Any]

    def __init__(
        self,
        *,
        vocabulary: PositiveInt = 4000,
        dim: PositiveInt = 256,
        layers: PositiveInt = 3,
        epochs: PositiveInt = 12,
        encoder_epochs: NonNegativeInt = 0,
        learning_rate: Positive = 2e-3,
        encoder_learning_rate: Positive = 1e-4,
        batch_size: PositiveInt = 2048,
        patience: PositiveInt = 3,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.vocabulary = vocabulary
        self.dim = dim
        self.layers = layers
        self.epochs = epochs
        self.encoder_epochs = encoder_epochs
        self.batch_size = batch_size
        self.patience = patience
        self.seed = seed
        self.learning_rate = learning_rate
        self.encoder_learning_rate = encoder_learning_rate

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
        run = DecoderRun(self.network_, self._save, folder, settings, train_encoder=self.encoder_epochs > 0)
        run.resume()
        told = self._tokens(train), self._tokens(valid)
        batches = [batches_of(each.lengths, self.batch_size) for each in told]
        states: list[EncodedSources] = []

        while run.epoch < self.epochs and run.worse < self.patience:
            tuning = run.epoch >= self.epochs - self.encoder_epochs
            if tuning:
                states = []
            elif not states:
                states = [EncodedSources.of(self.network_.encoder, each) for each in told]

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
        check_settings(self)
        for name, pairs in (("train", train), ("valid", valid)):
            if len(pairs.sources) != len(pairs.targets) or not len(pairs.sources):
                counts = f"{len(pairs.sources)} sources and {len(pairs.targets)} targets"
                raise InputError(f"{name} has {counts}; give one of each per pair, and one pair at least")

        if self.dim < _HEAD or self.dim % _HEAD:
            raise InputError(f"dim is {self.dim}; it must be a multiple of {_HEAD}, the width of an attention head")
        if self.encoder_epochs > self.epochs:
            raise InputError(f"encoder_epochs is {self.encoder_epochs}; it must be at most epochs, here {self.epochs}")

    def _build(self, encoder: SentenceText, pairs: Pairs) -> None:
        """Both tokenizers and the network, its decoder not trained."""
        torch = require("torch")
        BertConfig = require("transformers").BertConfig
        BertLMHeadModel = require("transformers").BertLMHeadModel
        EncoderDecoderModel = require("transformers").EncoderDecoderModel

        self.source_ = encoder.network[0].tokenizer
        self.longest_source_ = int(encoder.network.max_seq_length or 512)
        self.target_ = learned_vocabulary(pairs.targets, self.vocabulary)
        # On short texts the backward pass of torch's fused attention takes longer than all else together.
        inner = encoder.network[0].auto_model

        with quiet_loading(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            config = BertConfig(
                vocab_size=self.target_.get_vocab_size(), hidden_size=self.dim, num_hidden_layers=self.layers,
                num_attention_heads=self.dim // _HEAD, intermediate_size=4 * self.dim, is_decoder=True,
                add_cross_attention=True, max_position_embeddings=LONGEST + 2, hidden_dropout_prob=_DROPOUT,
                attention_probs_dropout_prob=0.0, pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END,
                initializer_range=self.dim**-0.5, attn_implementation="eager",
            )  # fmt: skip
            own = type(inner)(inner.config)
            own.load_state_dict(inner.state_dict())
            own.set_attn_implementation("eager")
            network = EncoderDecoderModel(encoder=own, decoder=BertLMHeadModel(config)).to(default_device())
            if (bridge := getattr(network, "enc_to_dec_proj", None)) is not None:
                # States of some encoders are small, and a decoder would be slow to notice them.
                some = EncodedSources.of(own, self._tokens(Pairs(pairs.sources[:SENTENCES], []))).states.float()
                torch.nn.init.normal_(bridge.weight, std=float(some.square().sum(dim=1).mean()) ** -0.5)

        network.config.decoder_start_token_id, network.config.pad_token_id = BEGIN, PAD
        network.config.eos_token_id = END
        self.network_ = network

    def _tokens(self, pairs: Pairs) -> Tokens:
        sources = self.source_(list(pairs.sources), truncation=True, max_length=self.longest_source_)["input_ids"]
        targets = [e.ids[: LONGEST - 1] for e in self.target_.encode_batch(list(pairs.targets))]
        return Tokens([np.asarray(s, np.int64) for s in sources], [np.asarray([*t, END], np.int64) for t in targets])

    def _epoch(self, run: DecoderRun, told: Tokens, states: EncodedSources | None, steps: int) -> float:
        """One pass; returns the mean loss per target token."""
        torch = require("torch")

        generator = np.random.default_rng([self.seed, run.epoch])
        batches = batches_of(told.lengths, self.batch_size, generator)
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

    def _loss(self, told: Tokens, states: EncodedSources | None, batches: Sequence[NDArray[np.int64]]) -> float:
        torch = require("torch")

        self.network_.eval()
        with torch.no_grad():
            sums = [self._batch_loss(told, states, rows, 0.0) for rows in batches]

        return float(sum(float(loss) for loss, _ in sums) / sum(n for _, n in sums))

    def _batch_loss(
        self, told: Tokens, states: EncodedSources | None, rows: NDArray[np.int64], smoothing: float
    ) -> tuple[Any, int]:
        """Summed loss of the target tokens of a batch, and their number."""
        torch = require("torch")

        network, device = self.network_, self.network_.device
        decoder = network.decoder

        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16()):
            if states is None:
                ids, mask = (torch.from_numpy(a).to(device) for a in padded([told.sources[i] for i in rows]))
                context = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            else:
                context, mask = states.batch(rows)

            if hasattr(network, "enc_to_dec_proj"):
                context = network.enc_to_dec_proj(context.float())

            target, real = (torch.from_numpy(a).to(device) for a in padded([told.targets[i] for i in rows]))
            given = torch.cat([torch.full_like(target[:, :1], BEGIN), target[:, :-1]], dim=1)
            hidden = decoder.bert(
                input_ids=given, encoder_hidden_states=context, encoder_attention_mask=mask, use_cache=False
            ).last_hidden_state
            hidden = decoder.cls.predictions.transform(hidden[real.bool()])

        last = decoder.cls.predictions.decoder

        return loss_of_rows()(hidden, last.weight, last.bias, target[real.bool()], smoothing), int(real.sum())

    # -- writing -------------------------------------------------------------------------------------------------------

    def translate(self, sources: Sequence[str], *, beams: int = 4) -> list[str]:
        """What is written from each source, in order.

        Args:
            sources: texts.
            beams: beginnings followed at a time; 1 takes the likeliest token at each step.
        """
        torch = require("torch")

        if not hasattr(self, "network_"):
            raise NotFittedError(f"this {type(self).__name__} has not learned anything; call fit or load first")

        told = self._tokens(Pairs(sources, []))
        out = [""] * len(sources)
        order = np.argsort([len(s) for s in told.sources], kind="stable")
        network = self.network_.eval()

        with (
            torch.inference_mode(),
            torch.autocast(network.device.type, torch.bfloat16, enabled=computes_in_bfloat16()),
        ):
            for first in range(0, len(order), SENTENCES):
                rows = order[first : first + SENTENCES]
                ids, mask = (torch.from_numpy(a).to(network.device) for a in padded([told.sources[i] for i in rows]))
                longest = min(LONGEST, 2 * ids.shape[1] + 10)
                written = network.generate(
                    input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=longest, do_sample=False,
                    decoder_start_token_id=BEGIN, pad_token_id=PAD, eos_token_id=END, early_stopping=beams > 1,
                )  # fmt: skip
                for row, text in zip(rows, self.target_.decode_batch(written.tolist()), strict=True):
                    out[row] = text

        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        write_artifact(path, type(self).__name__, self._write)

    def _write(self, writer: ArtifactWriter) -> None:
        writer.json("translator", self.params())
        writer.json("limits", {"source": self.longest_source_})
        writer.json("target", self.target_.to_str())
        with tempfile.TemporaryDirectory() as name, quiet_loading():
            for part, holder in (("network", self.network_), ("source", self.source_)):
                holder.save_pretrained(Path(name) / part)
                writer.folder_of_model(part, Path(name) / part)

    def _open(self, artifact: Artifact) -> Self:
        Tokenizer = require("tokenizers").Tokenizer
        AutoTokenizer = require("transformers").AutoTokenizer
        EncoderDecoderModel = require("transformers").EncoderDecoderModel

        self.longest_source_ = artifact.json("limits")["source"]
        self.target_ = Tokenizer.from_str(artifact.json("target"))

        with quiet_loading(), artifact.copy_of_model("source") as folder:
            self.source_ = AutoTokenizer.from_pretrained(folder)

        with quiet_loading(), artifact.copy_of_model("network") as folder:
            self.network_ = EncoderDecoderModel.from_pretrained(folder).to(default_device())

        self.network_.eval()

        return self

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The translator that a `fit` with this folder left there; of an unfinished run, the best epoch so far."""
        artifact = open_artifact(Path(folder) / "model")
        if artifact.class_name != cls.__name__:
            raise ArtifactError(f"{folder} holds a {artifact.class_name}, not a {cls.__name__}")

        return cls(**artifact.json("translator"))._open(artifact)
