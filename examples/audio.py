"""Audio: classify rising, falling and steady tones, generated here, by their log-mel spectra.

python examples/audio.py
"""

import numpy as np

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import audio

RATE = 16_000
rng = np.random.default_rng(0)
time = np.linspace(0, 0.5, 8_000)  # seconds
clips, labels = [], []

for label, slope in {"rising": 600, "falling": -600, "steady": 0}.items():
    for _ in range(40):
        start = rng.uniform(800, 1600)  # hertz
        tone = np.sin(2 * np.pi * (start * time + slope * time**2 / 2 * rng.uniform(0.5, 1.5)))
        clips.append((tone + rng.normal(scale=0.5, size=len(time))).astype(np.float32))
        labels.append(label)

part = np.array(["train", "train", "valid", "test"])[np.arange(120) % 4]
(problem,) = audio.classification([{"array": c, "rate": RATE} for c in clips], labels, part=part)
print(
    experiments.table([experiments.run(problem, TransferTask(Probe()), name="log-mel")], problem.metrics)
    .round(3)
    .to_string(index=False)
)
