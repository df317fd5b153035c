"""Segmentation: discs found in pictures that are made here. No weights are needed; `DenseImage(model=...)` takes some.

python examples/vision.py
"""

import numpy as np

from recotransfer import Probe, TransferTask, cases
from recotransfer.adapters import vision
from recotransfer.encoders.dense import DenseImage

draw = np.random.default_rng(0)
y, x = np.mgrid[:48, :64]
pictures, masks = {}, {}
for name in range(12):
    disc = np.hypot(y - draw.uniform(12, 36), x - draw.uniform(12, 52)) < draw.uniform(6, 11)
    noise = draw.integers(60, 160, (48, 64, 3))
    pictures[name] = (noise + 40 * disc[:, :, None]).astype(np.uint8)
    masks[name] = np.where(disc, "disc", "rest")

part = {name: ("train", "train", "valid", "test")[name % 4] for name in pictures}
outcomes = []
for name, sigmas in {"one pixel": (0.3,), "around it": (1.0, 2.0, 4.0)}.items():
    problem = vision.Segmentation(pictures, masks, part, DenseImage(sigmas=sigmas), samples=500)
    outcomes.append(problem.judged(cases.run(problem.case, TransferTask(Probe()), name=name), "disc"))
print(cases.table(outcomes, vision.MASK_METRICS, control="one pixel").round(3).to_string(index=False))
