"""Shop: transfers learned from the log, each compared with the raw item embeddings, for recommending new items.

python examples/shop.py
"""

from pathlib import Path

from recotransfer import RidgeProfiles, TransferTask, experiments, read_interactions, read_items, splits
from recotransfer.encoders import SentenceText
from recotransfer.transfer import LearnedMetric, RidgeMap, Whitening

folder = Path(__file__).parents[1] / "sample_data"
items = read_items(folder / "items.csv").data
events = read_interactions(folder / "events.csv", items=items.ids).data
split = splits.cold_items(events)  # validation and test items have no events in training
metrics = {"MAP": experiments.mean_average_precision, "MRR": experiments.mean_reciprocal_rank}
text = SentenceText(column=items.of_kind("text"))
problem = experiments.Problem("new items", items, split, metrics, encoders=[text], target="items")
variants = {"raw embeddings": [], "whitened": [Whitening(dim=64)], "ridge map": [RidgeMap(dim=64)],
        "learned metric": [LearnedMetric(dim=64)]}  # fmt: skip
outcomes = [
    experiments.run(problem, TransferTask(RidgeProfiles(), transfers=maps), name=name, settings=[{}], draws=200)
    for name, maps in variants.items()
]
columns = ["variant", "MAP", "MAP low", "MAP high", "gain", "gain low", "gain high"]
print(experiments.table(outcomes, metrics, ablation="raw embeddings")[columns].round(4).to_string(index=False))
