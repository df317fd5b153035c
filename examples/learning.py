"""Learning: recommend courses to new learners from the group that their profile puts them in, on synthetic data.

python examples/learning.py
"""

import numpy as np
import pandas as pd

from recotransfer import EASE, IdMap, Interactions, Items, TransferTask, experiments
from recotransfer.adapters import learning

rng = np.random.default_rng(0)
habit = rng.integers(3, size=150)  # the kind of each learner, which decides the courses they take
courses = Items(IdMap([f"c{c}" for c in range(24)]), pd.DataFrame({"title": [f"course {c}" for c in range(24)]}))
pairs = [(f"u{u}", f"c{8 * h + c}", t) for u, h in enumerate(habit) for t, c in enumerate(rng.permutation(8)[:5])]
frame = pd.DataFrame(pairs, columns=["learner", "course", "time"])
log = Interactions.from_frame(frame, user="learner", item="course", time="time", items=courses.ids)
minutes = np.array([[10, 0], [60, 1], [25, 9]])[habit] + rng.normal(scale=1.5, size=(150, 2))
profiles = pd.DataFrame(minutes, columns=["minutes", "posts"], index=[f"u{u}" for u in range(150)])

outcomes = []
for name, used in {"popularity": None, "groups of learners": profiles}.items():
    problem = learning.courses(log, courses, profiles=used, groups=3, protocol="new learners", encoders=[])
    outcomes.append(experiments.run(problem, TransferTask(EASE(), encoders=[]), name=name, settings=[{}], draws=200))
columns = ["variant", "found at 10", "found at 10 low", "found at 10 high", "gain", "gain low", "gain high"]
print(experiments.table(outcomes, problem.metrics, ablation="popularity")[columns].round(3).to_string(index=False))
