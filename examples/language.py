"""Language: zero-shot, few-shot and full text classification with embeddings of all-MiniLM-L6-v2.

python examples/language.py
"""

import numpy as np

from recotransfer import ContentProfiles, Probe, TransferTask, experiments
from recotransfer.adapters import nlp

TEMPLATES = {
    "delivery": ["the parcel came {} late", "the courier left the box {} far away", "shipping took {} too long"],
    "quality": ["the seam came apart {} soon", "this feels {} cheap and flimsy", "the zip is {} badly made"],
    "price": ["it costs {} more than elsewhere", "the discount was {} small", "this is {} too expensive"],
}
ABOUT = {"delivery": "late delivery and shipping", "quality": "poor quality", "price": "a price that is too high"}
WORDS = ["far", "much", "rather", "really", "so", "quite", "just", "somewhat", "a-bit", "way", "truly", "simply"]

pairs = [(text.format(word), label) for label, texts in TEMPLATES.items() for text in texts for word in WORDS]
texts, labels = zip(*pairs, strict=True)
part = np.random.default_rng(0).choice(["train", "valid", "test"], len(texts), p=[0.4, 0.2, 0.4])
full = nlp.classification(texts, labels, part)
outcomes = [
    experiments.run(nlp.few(full, 0, about=ABOUT), TransferTask(ContentProfiles()), name="description alone"),
    experiments.run(nlp.few(full, 4, about=ABOUT), TransferTask(ContentProfiles()), name="and 4 examples"),
    experiments.run(full, TransferTask(Probe()), name="all examples"),
]
columns = ["variant", "accuracy", "accuracy low", "accuracy high", "gain", "gain low", "gain high"]
print(experiments.table(outcomes, full.metrics, ablation="description alone")[columns].round(3).to_string(index=False))
