"""Adapters of ours that need no pictures are held to the shipped contract."""

import numpy as np
import pandas as pd

from recotransfer import HybridItems, TransferTask
from recotransfer.adapters import audio, learning, medical, nlp
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import HashingText
from recotransfer.testing import AdapterContract

PARTS = ["train", "train", "valid", "valid", "test", "test", "train", "train"] * 5
LABELS = ["good", "bad"] * 20


class TestTexts(AdapterContract):
    least = 0.9

    def problem(self):
        texts = [f"{word} {word} day {n}" for n, word in enumerate(["glad", "sour"] * 20)]
        return nlp.classification(texts, LABELS, encoders=[HashingText(column="text", dim=64)], part=PARTS)


class TestClips(AdapterContract):
    least = 0.9

    def problem(self):
        waves = [np.sin(np.arange(4000) * pitch).astype(np.float32) for pitch in (0.05, 0.4)]
        clips = [{"array": waves[n % 2] * (1 + n / 100), "rate": 16_000} for n in range(40)]
        return audio.classification(clips, LABELS, part=PARTS)[0]


class TestTables(AdapterContract):
    least = 0.9

    def problem(self):
        ill = np.arange(40) % 2 == 0
        table = pd.DataFrame({"age": np.where(ill, 70.0, 30.0) + np.arange(40) / 10, "kind": ["a", "b"] * 20})
        table["state"] = np.where(ill, "ill", "well")
        return medical.disease_from_table(table, "state", positive="ill", part=PARTS)[0]

    def read_back(self, outcome):
        return medical.findings(outcome, "ill")


class TestCourses(AdapterContract):
    def problem(self):
        rows = [(f"u{u}", f"c{c}", float(t)) for u in range(20) for t, c in enumerate(range(u % 2, 12, 2))]
        log = pd.DataFrame(rows, columns=["user", "item", "time"])
        catalogue = pd.DataFrame({"title": [f"{'maths' if c % 2 else 'music'} {c}" for c in range(12)]})
        items = Items(IdMap([f"c{c}" for c in range(12)]), catalogue, {"title": "text"})
        return learning.courses(Interactions.from_frame(log, time="time"), items, encoders=[HashingText(dim=32)])

    def task(self):
        return TransferTask(HybridItems(), progress=False)
