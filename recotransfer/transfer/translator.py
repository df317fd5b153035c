"""Sequence-to-sequence text generation, such as translation: a small decoder on top of a pretrained text encoder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.encoders import SentenceText
from recotransfer.encoders.models import quiet_loading
from recotransfer.encoders.precision import computes_in_bfloat16
from recotransfer.errors import InputError, NotFittedError, require
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

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = 64  # width of an attention head
_DROPOUT = 0.1
_SMOOTHING = 0.1  # probability mass that label smoothing spreads over all tokens
_WARM_UP = 0.1  # share of the steps in which the learning rate grows
_CLIP = 1.0  # maximum gradient norm


@checked_class
class Translator:
    """Generates text from text: a pretrained encoder, and a small decoder with cross-attention to its token states.

    The warm-started encoder-decoder of Rothe, Narayan and Severyn, "Leveraging pre-trained checkpoints for sequence
    generation tasks" (2020), trained with label smoothing (Szegedy et al., 2016). The decoder has its own byte-pair
    vocabulary, learned from the targets. While the encoder is frozen, its token states are computed once and kept in
    memory at 2 bytes per number, so that each step runs the decoder only.

    Args:
        vocabulary: maximum number of target tokens.
        dim: width of the decoder, a multiple of 64.
        layers: number of decoder layers.
        epochs: maximum number of passes over the pairs.
        encoder_epochs: how many of these, at the end, also train the encoder; all of them for an untrained encoder.
        learning_rate: peak learning rate of the decoder.
        encoder_learning_rate: peak learning rate of the encoder.
        batch_size: target tokens per step.
        patience: epochs without a lower validation loss after which training stops.
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
        """Learn to generate the targets from the sources; returns self, with the weights of the best epoch on `valid`.

        A checkpoint is written to `folder` after each epoch. Calling `fit` again resumes an interrupted run, which ends
        with the same model up to floating-point error, and loads a finished one. The model itself is in `folder`/model,
        from where `load` reads it.

        Args:
            encoder: a text encoder whose network is a transformer.
            train: training pairs.
            valid: validation pairs, which decide when to stop and which epoch to keep.
            folder: a folder for this run alone.

        Raises:
            InputError: invalid settings, a folder that holds another run, or no epoch with a finite validation loss.
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
        train_tokens, valid_tokens = self._tokens(train), self._tokens(valid)
        train_batches, valid_batches = (batches_of(t.lengths, self.batch_size) for t in (train_tokens, valid_tokens))
        states: list[EncodedSources] = []

        while run.epoch < self.epochs and run.worse < self.patience:
            tuning = run.epoch >= self.epochs - self.encoder_epochs
            if tuning:
                states = []  # those of the frozen encoder no longer hold
            elif not states:
                states = [EncodedSources.of(self.network_.encoder, t) for t in (train_tokens, valid_tokens)]

            train_states, valid_states = states if states else (None, None)
            begin = time.perf_counter()
            loss = self._epoch(run, train_tokens, train_states, len(train_batches))
            valid_loss = self._loss(valid_tokens, valid_states, valid_batches)
            run.spent += time.perf_counter() - begin
            run.epoch += 1
            run.finish_epoch(round(loss, 5), round(valid_loss, 5))
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
        """Raise `InputError` for invalid settings or pairs."""
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
        """Set up both tokenizers and the network, with an untrained decoder."""
        torch = require("torch")
        BertConfig = require("transformers").BertConfig
        BertLMHeadModel = require("transformers").BertLMHeadModel
        EncoderDecoderModel = require("transformers").EncoderDecoderModel

        self.source_ = encoder.network[0].tokenizer
        self.longest_source_ = int(encoder.network.max_seq_length or 512)
        self.target_ = learned_vocabulary(pairs.targets, self.vocabulary)
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
            # A copy: the caller's encoder stays as it is. Eager attention, because on short texts the backward pass of
            # torch's fused attention takes longer than everything else together.
            copied = type(inner)(inner.config)
            copied.load_state_dict(inner.state_dict())
            copied.set_attn_implementation("eager")
            network = EncoderDecoderModel(encoder=copied, decoder=BertLMHeadModel(config)).to(default_device())
            if (bridge := getattr(network, "enc_to_dec_proj", None)) is not None:
                # Some encoders have small token states, which the decoder would be slow to use; project them to about
                # unit size.
                sample = EncodedSources.of(copied, self._tokens(Pairs(pairs.sources[:SENTENCES], []))).states.float()
                torch.nn.init.normal_(bridge.weight, std=float(sample.square().sum(dim=1).mean()) ** -0.5)

        network.config.decoder_start_token_id, network.config.pad_token_id = BEGIN, PAD
        network.config.eos_token_id = END
        self.network_ = network

    def _tokens(self, pairs: Pairs) -> Tokens:
        sources = self.source_(list(pairs.sources), truncation=True, max_length=self.longest_source_)["input_ids"]
        targets = [e.ids[: LONGEST - 1] for e in self.target_.encode_batch(list(pairs.targets))]
        return Tokens([np.asarray(s, np.int64) for s in sources], [np.asarray([*t, END], np.int64) for t in targets])

    def _epoch(self, run: DecoderRun, pairs: Tokens, states: EncodedSources | None, steps: int) -> float:
        """Train for one pass of `steps` steps; returns the mean loss per target token.

        Without `states`, those of the frozen encoder, the encoder runs in each step and is trained as well.
        """
        torch = require("torch")

        rng = np.random.default_rng([self.seed, run.epoch])
        batches = batches_of(pairs.lengths, self.batch_size, rng)
        rng.shuffle(batches)
        tuning = states is None
        self.network_.encoder.requires_grad_(tuning).train(tuning)
        self.network_.decoder.train()
        total, tokens = 0.0, 0

        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(1 << 31)))
            for at, rows in enumerate(batches):
                run.set_learning_rates(self._learning_rates((run.epoch * steps + at + 1) / (self.epochs * steps)))
                summed, n = self._batch_loss(pairs, states, rows, _SMOOTHING)
                (summed / n).backward()
                torch.nn.utils.clip_grad_norm_(self.network_.parameters(), _CLIP)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
                run.step += 1
                total, tokens = total + float(summed.detach()), tokens + n

        return total / tokens

    def _learning_rates(self, done: float) -> tuple[float, float]:
        """Learning rates of decoder and encoder after this share of all steps: linear warm-up, then decay to 0.

        The encoder's schedule spans only the epochs in which it is trained.
        """
        begin = 1 - self.encoder_epochs / self.epochs
        share = max(0.0, (done - begin) / (1 - begin)) if begin < 1 else 0.0

        def schedule(share_done: float) -> float:
            return min(share_done / _WARM_UP, (1 - share_done) / (1 - _WARM_UP))

        return self.learning_rate * schedule(done), self.encoder_learning_rate * schedule(share)

    def _loss(self, pairs: Tokens, states: EncodedSources | None, batches: Sequence[NDArray[np.int64]]) -> float:
        """Mean loss per target token, without label smoothing or dropout."""
        torch = require("torch")

        self.network_.eval()
        with torch.no_grad():
            sums = [self._batch_loss(pairs, states, rows, 0.0) for rows in batches]

        return float(sum(float(loss) for loss, _ in sums) / sum(n for _, n in sums))

    def _batch_loss(
        self, pairs: Tokens, states: EncodedSources | None, rows: NDArray[np.int64], smoothing: float
    ) -> tuple[Tensor, int]:
        """Summed loss of the target tokens of a batch, and their number."""
        torch = require("torch")

        network, device = self.network_, self.network_.device
        decoder = network.decoder

        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16()):
            if states is None:
                ids, mask = (torch.from_numpy(a).to(device) for a in padded([pairs.sources[i] for i in rows]))
                context = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            else:
                context, mask = states.batch(rows)

            if hasattr(network, "enc_to_dec_proj"):
                context = network.enc_to_dec_proj(context.float())

            target, real = (torch.from_numpy(a).to(device) for a in padded([pairs.targets[i] for i in rows]))
            shifted = torch.cat([torch.full_like(target[:, :1], BEGIN), target[:, :-1]], dim=1)  # teacher forcing
            hidden = decoder.bert(
                input_ids=shifted, encoder_hidden_states=context, encoder_attention_mask=mask, use_cache=False
            ).last_hidden_state
            hidden = decoder.cls.predictions.transform(hidden[real.bool()])

        last = decoder.cls.predictions.decoder

        return loss_of_rows()(hidden, last.weight, last.bias, target[real.bool()], smoothing), int(real.sum())

    # -- generation ----------------------------------------------------------------------------------------------------

    def translate(self, sources: Sequence[str], *, beams: int = 4) -> list[str]:
        """The generated text of each source, in order.

        Args:
            sources: texts to translate.
            beams: width of the beam search; 1 is greedy decoding.
        """
        torch = require("torch")

        if not hasattr(self, "network_"):
            raise NotFittedError.of(self)

        pairs = self._tokens(Pairs(sources, []))
        out = [""] * len(sources)
        order = np.argsort([len(s) for s in pairs.sources], kind="stable")
        network = self.network_.eval()

        with (
            torch.inference_mode(),
            torch.autocast(network.device.type, torch.bfloat16, enabled=computes_in_bfloat16()),
        ):
            for first in range(0, len(order), SENTENCES):
                rows = order[first : first + SENTENCES]
                ids, mask = (torch.from_numpy(a).to(network.device) for a in padded([pairs.sources[i] for i in rows]))
                longest = min(LONGEST, 2 * ids.shape[1] + 10)
                generated = network.generate(
                    input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=longest, do_sample=False,
                    decoder_start_token_id=BEGIN, pad_token_id=PAD, eos_token_id=END, early_stopping=beams > 1,
                )  # fmt: skip
                for row, text in zip(rows, self.target_.decode_batch(generated.tolist()), strict=True):
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
            for part, saved in (("network", self.network_), ("source", self.source_)):
                saved.save_pretrained(Path(name) / part)
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
        """The translator that `fit` saved in this folder; for an unfinished run, the best epoch so far."""
        artifact = open_artifact(Path(folder) / "model")
        artifact.check_class(cls)
        return cls(**artifact.json("translator"))._open(artifact)
