"""The state of a fitted recommender: its log as it is stored, its lists and dicts as a copy gets them."""

from __future__ import annotations

from typing import Any

from recotransfer.data import IdMap, Interactions
from recotransfer.io.artifacts import Artifact, ArtifactWriter


def write_log(writer: ArtifactWriter, events: Interactions) -> None:
    """Store users and events; the items are the catalogue, which is stored by itself."""
    writer.ids("users", events.users.ids)
    for name in ("user", "item", "weight", "time"):
        if (values := getattr(events, name)) is not None:
            writer.array(f"events.{name}", values)


def read_log(artifact: Artifact, catalogue: IdMap) -> Interactions:
    """The events that `write_log` stored."""
    return Interactions(
        IdMap(artifact.ids("users")),
        catalogue,
        artifact.array("events.user"),
        artifact.array("events.item"),
        artifact.array("events.weight"),
        artifact.array("events.time") if "events.time.npy" in artifact else None,
    )


def own(value: Any) -> Any:
    """`value` with its lists and dicts copied at every depth, and all else shared."""
    if type(value) is dict:
        return {name: own(each) for name, each in value.items()}

    return [own(each) for each in value] if type(value) is list else value
