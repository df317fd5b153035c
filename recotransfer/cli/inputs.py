"""Command line options into items, interactions, filters, encoders and tasks. Read reports go to stderr."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recotransfer.cli.options import (
    kinds_of_columns,
    numbers,
    pairs,
    say,
)
from recotransfer.errors import InputError, UnknownIdError
from recotransfer.settings import parse_named, settings_of, split_label

if TYPE_CHECKING:
    from recotransfer.data import Filter, IdMap, Interactions, Items
    from recotransfer.encoders import Encoder
    from recotransfer.recommenders import Recommender
    from recotransfer.task import TransferTask


def read_catalogue(o: Mapping[str, Any]) -> Items:
    """The catalogue that the content options describe. Its read report goes to stderr."""
    from recotransfer.io.readers import read_items

    read = read_items(
        o["items"],
        columns=pairs(o["item_columns"], "item-column"),
        kinds=kinds_of_columns(o["kinds"]),
        events=o.get("events"),
        event_columns=pairs(o.get("event_columns", ()), "event-column"),
    )
    say(read.report)
    return read.data


def read_events(source: str, o: Mapping[str, Any], items: IdMap, users: IdMap | None = None) -> Interactions:
    """The events of `source`, weighted as the event options say. The read report goes to stderr."""
    from recotransfer.io.readers import read_interactions
    from recotransfer.io.schema import EventWeights

    weighing = EventWeights(
        weights=numbers(o["event_weights"], "event-weight"),
        rating_threshold=o["rating_threshold"],
        rating_as_weight=o["rating_as_weight"],
    )
    columns = pairs(o["event_columns"], "event-column")
    read = read_interactions(
        source, columns=columns, events=weighing, items=items, users=users, time_format=o["time_format"]
    )
    say(read.report)

    return read.data


def ids_of(path: Path, role: Literal["user", "item"], known: IdMap) -> Any:
    """The ids in a file's id column, or in its only column, converted to the type of the known ids."""
    from recotransfer.io.readers import read_ids

    try:
        return read_ids(path, role=role, known=known)
    except UnknownIdError as cause:
        raise UnknownIdError(f"{path}: {cause}") from None


def filter_of(o: Mapping[str, Any], known: IdMap) -> Filter | None:
    """The filter that the filter options describe; None without such options."""
    from recotransfer.data import Filter

    if o["allow"] is None and o["deny"] is None and o["where"] is None:
        return None

    return Filter(
        None if o["allow"] is None else ids_of(o["allow"], "item", known),
        () if o["deny"] is None else ids_of(o["deny"], "item", known),
        o["where"],
    )


def task_of(o: Mapping[str, Any], items: Items, recommender: Recommender | None = None) -> TransferTask:
    """A task with the encoders, transfers and tuners of the content options, not fitted."""
    from recotransfer.registry import transfers, tuners
    from recotransfer.task import TransferTask

    return TransferTask(
        recommender,
        encoders=encoders_of(o, items),
        weights=numbers(o["weights"], "weight") or None,
        transfers=[transfers.make(text) for text in o["transfers"]],
        tuners={modality: tuners.make(text) for modality, text in pairs(o["tuners"], "tuner").items()},
        cache=o["cache"],
    )


def encoders_of(o: Mapping[str, Any], items: Items) -> list[Encoder] | None:
    """The encoders of the content options: None for the defaults, an empty list for --no-content."""
    from recotransfer.encoders import default_encoders

    if o["no_content"]:
        return []

    for kind in ("text", "image"):
        if o[f"{kind}_encoder"] and not items.of_kind(kind):
            raise InputError(f"--{kind}-encoder: {o['items']} has no {kind} column; declare one with "
                             f"--kind COLUMN={kind}")  # fmt: skip

    given = [_encoder_of(text) for text in o["encoders"]]
    if not (o["text_encoder"] or o["image_encoder"] or o["only"]):
        return given or None

    return (
        default_encoders(items, text_model=o["text_encoder"], image_model=o["image_encoder"], only=o["only"] or None)
        + given
    )


def _encoder_of(text: str) -> Encoder:
    """The encoder that "COLUMN=NAME(settings)" or "NAME(settings)" describes; commas separate several columns."""
    from recotransfer.registry import encoders

    label, spec = split_label(text)
    kind = encoders.find(parse_named(spec).name)
    names = [name.strip() for name in label.split(",") if name.strip()]
    if not names:
        made: Encoder = encoders.make(spec)
        return made

    declared = settings_of(kind)
    if "column" not in declared and "columns" not in declared:
        raise InputError(f"--encoder {text!r}: {kind.__name__} has no setting for columns; leave out {label!r}")

    if "columns" in declared:
        made = encoders.make(spec, columns=names)
    else:
        made = encoders.make(spec, column=names[0] if len(names) == 1 else names)

    return made
