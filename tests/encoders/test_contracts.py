"""Every encoder of ours is held to the shipped contract."""

import numpy as np
import pandas as pd
import pytest
from tiny import sentence_model

from recotransfer import registry
from recotransfer.data import IdMap, Items
from recotransfer.encoders import (
    HashingText,
    ImageGrid,
    KmerSequence,
    LogMelAudio,
    PretrainedAudio,
    PretrainedImage,
    SentenceText,
    StandardTable,
    StaticText,
    TabularAttributes,
    TfidfText,
)
from recotransfer.encoders.static import write_static
from recotransfer.testing import EncoderContract, titles


def items_of(**columns):
    """Items with these columns of cells, arrays and mappings left whole."""
    count = len(next(iter(columns.values())))
    table = pd.DataFrame(index=range(count))
    for name, cells in columns.items():
        table[name] = pd.Series(list(cells), dtype=object)
    return Items(IdMap(range(count)), table, {})


WORDS = sorted({word for title in titles().columns["title"] for word in title.split()})


class TestHashingText(EncoderContract):
    def make(self):
        return HashingText(dim=32)


class TestHashingOfSeveralColumns(EncoderContract):
    def make(self):
        return HashingText(column=["title", "brand"], dim=32)


class TestTfidfText(EncoderContract):
    def make(self):
        return TfidfText.learned(titles().columns["title"], column="title")


class TestSentenceText(EncoderContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = sentence_model(tmp_path_factory.mktemp("sentences"), WORDS)

    def make(self):
        return SentenceText(model=self.folder, precision="float32")


class TestStaticText(EncoderContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("static") / "model"
        shapes = {
            "table": (len(WORDS), 5), "own": (5, 3), "before": (5, 3), "bias": (3,), "in": (8, 4), "in_bias": (4,),
            "out": (4, 5), "out_bias": (5,),
        }  # fmt: skip
        draw = np.random.default_rng(0)
        write_static(cls.folder, WORDS, {name: draw.normal(size=shape) for name, shape in shapes.items()})

    def make(self):
        return StaticText(model=self.folder)


class TestTabularAttributes(EncoderContract):
    def make(self):
        return TabularAttributes(columns=["brand", "price"], dim=32)

    def items(self):
        return items_of(brand=list("aabbccdd"), price=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0, 800.0])


class TestStandardTable(EncoderContract):
    def make(self):
        return StandardTable(numbers={"age": (40.0, 10.0)}, categories={"kind": {"a": 0.5, "b": 0.5}})

    def items(self):
        return items_of(age=[20.0, 40.0, 60.0, 80.0], kind=list("abab"))


class TestKmerSequence(EncoderContract):
    def make(self):
        return KmerSequence(k=(2, 3), placed=((1, 1),), dim=64)

    def items(self):
        return items_of(sequence=["ACGTACGT", "GGGGCCCC", "ATATATAT", "ACACACGT"])

    def unreadable(self):
        return ["xyz"]


def tone(hertz, rate=16_000):
    return {"array": np.sin(2 * np.pi * hertz * np.arange(rate // 4) / rate).astype(np.float32), "rate": rate}


class TestLogMelAudio(EncoderContract):
    def make(self):
        return LogMelAudio(bands=8)

    def items(self):
        return items_of(audio=[tone(hertz) for hertz in (110, 220, 440, 880)])

    def unreadable(self):
        return [b"no sound"]


def pictures():
    return items_of(image=list(np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)))


class TestPretrainedImage(EncoderContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory):
        pytest.importorskip("PIL")
        import torch
        from transformers import ResNetConfig, ResNetModel
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        cls.folder = tmp_path_factory.mktemp("vision")
        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ResNetModel(config).save_pretrained(cls.folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(cls.folder)

    def make(self):
        return PretrainedImage(model=self.folder, batch_size=2)

    def items(self):
        return pictures()

    def unreadable(self):
        return [b"no picture"]


class TestImageGrid(TestPretrainedImage):
    def make(self):
        return ImageGrid(model=self.folder, cells=2, size=32)


class TestPretrainedAudio(EncoderContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory):
        from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

        cls.folder = tmp_path_factory.mktemp("waves")
        config = Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
            conv_kernel=(10, 8), conv_stride=(5, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, vocab_size=8,
        )  # fmt: skip
        Wav2Vec2Model(config).save_pretrained(cls.folder)
        Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(cls.folder)

    def make(self):
        return PretrainedAudio(model=self.folder, longest=1.0)

    def items(self):
        return items_of(audio=[tone(hertz) for hertz in (110, 220, 440)])


def test_every_encoder_of_ours_is_held_to_the_contract():
    held = {name.removeprefix("Test") for name, kind in globals().items() if hasattr(kind, "make")}
    assert set(registry.encoders.names) <= held
