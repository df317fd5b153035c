"""What an installation without `cpu` or `gpu` can do: load saved models and recommend.

python tests/bare.py write FOLDER    # with everything installed: fits and saves models, and the lists they give
python tests/bare.py read FOLDER     # anywhere: loads them, and gives the same lists
"""

import json
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

NEEDS_TORCH = "sasrec"


def shop():
    """A catalogue of three kinds of things, the last of each bought by nobody, and users who keep to one kind."""
    import numpy as np
    import pandas as pd

    from recotransfer.data import IdMap, Interactions, Items

    words = ["cup", "quilt", "lamp"]
    frame = pd.DataFrame({"title": [f"{words[n % 3]} no. {n // 3}" for n in range(48)], "price": np.arange(48) / 2})
    items = Items(IdMap([f"i{n}" for n in range(48)]), frame, {"title": "text", "price": "number"})
    draw = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", float(day))
        for user in range(60)
        for day, item in enumerate(draw.permutation(np.arange(user % 3, 45, 3))[:6])
    ]
    events = Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item", "time"]), time="time", items=items.ids)
    return items, events


def models():
    """One of each kind, small."""
    from recotransfer import recommenders as r

    pair = [r.HybridItems(), r.RidgeProfiles()]
    return {
        "hybrid": r.HybridItems(),
        "ranker": r.HybridRanker(epochs=1),
        "ease": r.EASE(),
        "knn": r.ItemKNN(),
        "ridge": r.RidgeProfiles(),
        "content": r.ContentProfiles(),
        "als": r.ALS(dim=4, epochs=2),
        "bpr": r.BPR(dim=4, epochs=2),
        "popularity": r.Popularity(),
        "probe": r.Probe(),
        "ranks": r.RankFusion(members=pair),
        "weights": r.WeightedFusion(members=pair),
        "stack": r.StackedFusion(members=pair),
        "adaptive": r.AdaptiveFusion(members=pair),
        NEEDS_TORCH: r.SASRec(epochs=1, dim=8),
    }


def lists(task):
    """Five items for two users: of all, and of those that a filter lets through."""
    from recotransfer import Filter

    where = Filter(where="price < 12 and title != 'cup no. 1'")
    found = [task.recommend(["u0", "u7"], 5), task.recommend(["u0", "u7"], 5, filter=where)]
    return [[list(map(str, row)) for row in one.items] for one in found]


def write(folder, names=None):
    """Fit and save a task of each kind, or of those named, below `folder`, with the lists that it gives."""
    from recotransfer import TransferTask
    from recotransfer.encoders import HashingText, TabularAttributes

    items, events = shop()
    expected = {}
    chosen = {name: model for name, model in models().items() if names is None or name in names}
    for name, model in chosen.items():
        encoders = [HashingText(dim=64), TabularAttributes(columns=["price"])]
        task = TransferTask(model, encoders=encoders, progress=False).fit(items, events)
        task.save(folder / name)
        expected[name] = lists(task)
    (folder / "expected.json").write_text(json.dumps(expected))


def refusal(call):
    """What the error of a missing package says, None where the call succeeds."""
    from recotransfer.errors import MissingExtraError

    try:
        call()
    except MissingExtraError as error:
        return str(error)
    return None


def read(folder):
    """Load each task and compare its lists; what needs a missing package is refused with the pip line."""
    from recotransfer import TransferTask

    tasks = {}
    for name, expected in json.loads((folder / "expected.json").read_text()).items():
        tasks[name] = TransferTask.load(folder / name)
        if name != NEEDS_TORCH:
            assert lists(tasks[name]) == expected, name

    for said in (
        refusal(lambda: lists(tasks[NEEDS_TORCH])),
        refusal(lambda: tasks["hybrid"].extend(new_item())),
    ):
        assert "pip install 'recotransfer[cpu]'" in str(said), said


def new_item():
    """A thing that the shop has not had."""
    import pandas as pd

    from recotransfer.data import IdMap, Items

    return Items(
        IdMap(["new"]), pd.DataFrame({"title": ["a red cup"], "price": [1.0]}), {"title": "text", "price": "number"}
    )


def main(word, folder):
    """Write or read, and say what is installed and how long the first list took."""
    start = time.perf_counter()
    import recotransfer

    imported = time.perf_counter() - start
    {"write": write, "read": read}[word](Path(folder))
    size = sum(
        Path(file.locate()).stat().st_size
        for one in distributions()
        for file in one.files or []
        if Path(file.locate()).is_file()
    )
    done = "saved" if word == "write" else "loaded and recommending"
    names = sorted(one.name for one in distributions())
    print(
        f"recotransfer {recotransfer.__version__} imported in {imported:.2f} s, "
        f"models {done} after {time.perf_counter() - start:.1f} s, "
        f"{size / 2**20:.0f} MiB in {len(names)} packages: {', '.join(names)}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
