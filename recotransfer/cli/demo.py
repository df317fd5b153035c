"""The demo: recommendations on the sample shop for a warm user, a new user, a new item, and everyone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

from recotransfer.data import Filter, Interactions, Items, Reason, Recommendations
from recotransfer.encoders import default_encoders
from recotransfer.errors import InputError
from recotransfer.io.artifacts import sha256
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.serving.batch import BatchJob
from recotransfer.task import TransferTask


def run(data: Path, out: Path, image_encoder: str | None = None) -> None:
    """Fit on the shop in `data`, print some recommendations, write the model and all recommendations under `out`."""
    if not (data / "items.csv").is_file():
        raise InputError(f"{data} has no items.csv; run from the repository, or give the sample folder with --data")

    start = time.perf_counter()
    items = read_items(data / "items.csv")
    events = read_interactions(data / "events.csv", items=items.data.ids)
    click.echo(f"{items.report}\n{events.report}\n")
    task = TransferTask(encoders=default_encoders(items.data, image_model=image_encoder), cache=out / "cache").fit(
        items.data, events.data
    )
    show = _Shop(task, items.data, events.data)
    show.warm_user()
    show.new_user()
    show.new_item()
    task.save(out / "model")
    recs = _fresh_folder(out)
    job = BatchJob(recs, k=10, filter=Filter(where="in_stock"))
    manifest = job.run(task.recommender, model=sha256(out / "model" / "manifest.json"))
    seconds = time.perf_counter() - start
    click.echo(f"\nTen items in stock for each of {manifest['users']} users: {recs}")
    click.echo(f"The model: {out / 'model'}   (try: {sys.argv[0]} similar {out / 'model'} {items.data.ids.ids[0]})")
    click.echo(f"Everything took {seconds:.0f} s.")


def _fresh_folder(out: Path) -> Path:
    """The folder for recommendations, after deleting those of an earlier run and nothing else."""
    recs = out / "recommendations"
    for path in recs.glob("*"):
        if path.name.startswith("part-") or path.name in ("_job.json", "_manifest.json"):
            path.unlink()

    return recs


class _Shop:
    """Prints what the fitted task recommends to users of the shop."""

    def __init__(self, task: TransferTask, items: Items, events: Interactions) -> None:
        self.task = task
        self.items = items
        self.events = events
        self.titles = dict(zip(items.ids.ids.tolist(), items.columns["title"].tolist(), strict=True))

    def warm_user(self) -> None:
        """Recommendations with reasons for a user with a history of medium length."""
        counts = np.bincount(self.events.user, minlength=len(self.events.users))
        user = self.events.users.ids[int(np.argsort(counts)[int(len(counts) * 0.6)])]
        click.echo(f"A warm user, {user}. Latest events:")
        history = self.events.order[self.events.user[self.events.order] == self.events.users.positions([user])[0]]

        for event in history[::-1][:4]:
            kind = self.events.kinds[self.events.kind[event]] if self.events.kind is not None else "event"
            click.echo(f"    {kind:9s} {self.titles[self.events.items.ids[self.events.item[event]]]}")

        self._print(self.task.recommend([user], 5, filter=Filter(where="in_stock"), reason=True))

    def new_user(self) -> None:
        """Recommendations from two clicks of a user the model has never seen, without a refit."""
        clicked = self.events.items.ids[np.argsort(-self.task.recommender.popularity_)[[40, 41]]]
        frame = pd.DataFrame({"user": "just arrived", "item": clicked, "time": [0.0, 1.0]})
        history = Interactions.from_frame(frame, time="time", items=self.task.recommender.catalogue_)
        click.echo("\nA brand-new user with two clicks:")
        for item in clicked:
            click.echo(f"    view      {self.titles[item]}")

        self._print(self.task.recommend(k=5, histories=history, filter=Filter(where="in_stock"), reason=True))

    def new_item(self) -> None:
        """The users who should see an item without any events, and why."""
        cold = np.flatnonzero(self.task.recommender.popularity_ == 0)
        item = self.task.recommender.catalogue_.ids[cold[0]]
        click.echo(f"\nA brand-new item without any events, {item}: {self.titles[item]}. Who should see it:")
        for row in self.task.audience([item], 3).to_dict("records"):
            only_item = self.task.recommend([row["user"]], 1, filter=Filter(allow=[item]), reason=True)
            click.echo(f"    {row['user']}  score {row['score']:.3f}  {self._why(only_item, 0)}")

    def _print(self, recommendations: Recommendations) -> None:
        """The first user's list, each item with its reason."""
        click.echo("  is recommended:")
        for rank, item in enumerate(recommendations.items[0]):
            click.echo(f"  {rank + 1}. {self.titles[item]}\n       {self._why(recommendations, rank)}")

    def _why(self, recommendations: Recommendations, rank: int) -> str:
        """The reason for the first user's item at `rank`, with titles instead of ids."""
        assert recommendations.reason is not None  # every list here is requested with reasons
        reason: Reason = recommendations.reason[0, rank]
        named = tuple((f"“{self.titles[item]}”", share) for item, share in reason.because)
        return str(Reason(named, reason.parts))
