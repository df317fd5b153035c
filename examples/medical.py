"""Medicine: find a promoter-like motif in synthetic DNA by its k-mers, then rank all mutations of one sequence.

Not for clinical use. python examples/medical.py
"""

import numpy as np

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import medical
from recotransfer.encoders import KmerSequence

rng = np.random.default_rng(0)
sequences = ["".join(rng.choice(list("ACGT"), 40)) for _ in range(300)]
has_motif = np.arange(300) % 2 == 0
sequences = [s[:16] + "TATAAT" + s[22:] if motif else s for s, motif in zip(sequences, has_motif, strict=True)]
labels = np.where(has_motif, "promoter", "other").tolist()
part = np.array(["train", "train", "valid", "test"])[np.arange(300) // 2 % 4]

outcomes = []
for name, encoder in {
    "letters alone": KmerSequence(k=(1,), placed=(), dim=64),
    "words and places": KmerSequence(k=(3, 4), placed=((2, 2), (3, 4)), dim=1024),
}.items():
    (problem,) = medical.dna(sequences, labels, positive="promoter", encoders=[encoder], part=part)
    outcomes.append(experiments.run(problem, TransferTask(Probe()), name=name, calibrate=True, draws=200))
columns = ["variant", "AUC", "AUC low", "AUC high", "calibration error", "gain", "gain low", "gain high"]
print(experiments.table(outcomes, problem.metrics, ablation="letters alone")[columns].round(3).to_string(index=False))
print("\nmutations with the largest effect:")
print(medical.point_mutations(outcomes[-1].task, sequences[0], "promoter").head(5).to_string(index=False))
