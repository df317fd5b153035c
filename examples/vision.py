"""Vision: segment and detect discs in synthetic pictures, by simple filters; `DenseImage(model=...)` adds a network.

python examples/vision.py
"""

import numpy as np
import pandas as pd

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import detection, segmentation
from recotransfer.encoders.image_map import DenseImage

rng = np.random.default_rng(0)
y, x = np.mgrid[:48, :64]
pictures, masks = {}, {}
for name in range(12):
    disc = np.hypot(y - rng.uniform(12, 36), x - rng.uniform(12, 52)) < rng.uniform(6, 11)
    noise = rng.integers(60, 160, (48, 64, 3))
    pictures[name] = (noise + 40 * disc[:, :, None]).astype(np.uint8)
    masks[name] = np.where(disc, "disc", "rest")

part = {name: ("train", "train", "valid", "test")[name % 4] for name in pictures}
outcomes = []
for name, sigmas in {"one pixel": (0.3,), "around it": (1.0, 2.0, 4.0)}.items():
    problem = segmentation.Segmentation(pictures, masks, part, DenseImage(sigmas=sigmas), samples=500)
    outcomes.append(problem.evaluate(experiments.run(problem.problem, TransferTask(Probe()), name=name), "disc"))
print(experiments.table(outcomes, segmentation.MASK_METRICS, ablation="one pixel").round(3).to_string(index=False))

# The same discs as bounding boxes: detection.
edges = []
for name, mask in masks.items():
    rows, columns = np.nonzero(mask == "disc")
    edges.append((name, "disc", columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
boxes = pd.DataFrame(edges, columns=["picture", "label", "xmin", "ymin", "xmax", "ymax"])
problem = detection.Detection(pictures, boxes, part, DenseImage(sigmas=(1.0, 2.0, 4.0)), step=2, shapes=(1, 1))
outcome = problem.evaluate(experiments.run(problem.problem, TransferTask(Probe()), name="boxes"))
print(experiments.table([outcome], detection.BOX_METRICS).round(3).to_string(index=False))
