"""Encoders turn item content into vectors: text, pictures, attributes, sound, sequences.

Importing this loads no model library: each class imports what it needs when it first encodes.
"""

from __future__ import annotations

from recotransfer.encoders.audio import LogMelAudio, PretrainedAudio
from recotransfer.encoders.base import Encoder, Features, TrainableEncoder, encoder_spec
from recotransfer.encoders.catalogue import Encoded, EncodeReport, encode_items
from recotransfer.encoders.defaults import default_encoders, encoder_from_spec, store_encoders, stored_encoders
from recotransfer.encoders.fusion import Fusion, block_names, fuse
from recotransfer.encoders.image import PretrainedImage
from recotransfer.encoders.image_grid import ImageGrid
from recotransfer.encoders.sequence import KmerSequence
from recotransfer.encoders.static import StaticText
from recotransfer.encoders.tabular import StandardTable, TabularAttributes
from recotransfer.encoders.text import HashingText, SentenceText
from recotransfer.encoders.words import TfidfText

__all__ = [
    "EncodeReport",
    "Encoded",
    "Encoder",
    "Features",
    "Fusion",
    "HashingText",
    "ImageGrid",
    "KmerSequence",
    "LogMelAudio",
    "PretrainedAudio",
    "PretrainedImage",
    "SentenceText",
    "StandardTable",
    "StaticText",
    "TabularAttributes",
    "TfidfText",
    "TrainableEncoder",
    "block_names",
    "default_encoders",
    "encode_items",
    "encoder_from_spec",
    "encoder_spec",
    "fuse",
    "store_encoders",
    "stored_encoders",
]
