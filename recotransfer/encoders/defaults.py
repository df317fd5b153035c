"""The encoders that fit a catalogue, and encoders from and into saved folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from recotransfer.arguments import checked
from recotransfer.data import Items
from recotransfer.encoders.base import Encoder, encoder_spec
from recotransfer.encoders.image import PretrainedImage
from recotransfer.encoders.models import files_to_store, pinned
from recotransfer.encoders.tabular import TabularAttributes
from recotransfer.encoders.text import SentenceText
from recotransfer.errors import InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.registry import encoders


@checked
def encoder_from_spec(spec: Mapping[str, Any]) -> Encoder:
    """The encoder that `encoder_spec` described: the class under "class", the other entries its settings.

    Raises:
        InputError: an unknown class or setting.
    """
    return _built(spec, encoders.find)


def _built(spec: Mapping[str, Any], find: Callable[[str], type[Any]]) -> Encoder:
    settings = dict(spec)
    name = settings.pop("class", None)
    kind = find(name)

    try:
        return cast(Encoder, kind(**settings))
    except TypeError as cause:
        raise InputError(f"the settings of {name} do not fit this version: {cause}") from cause


@checked
def store_encoders(given: Sequence[Encoder], writer: ArtifactWriter) -> list[dict[str, Any]]:
    """The specs of encoders, with the models in local folders stored beside them, so that another machine can encode.

    A folder that holds code or pickled weights is not stored, but named by its absolute path and its revision; a model
    of the hub is named with the revision it had in the fit.
    """
    specs = [encoder_spec(encoder) for encoder in given]
    for at, (encoder, spec) in enumerate(zip(given, specs, strict=True)):
        model = spec.get("model")
        if not isinstance(model, (str, Path)):
            continue

        files = files_to_store(Path(model)) if Path(model).is_dir() else None
        if files is not None:
            writer.folder_of_model(f"encoder {at}", model, files)
            spec["model"] = None
        elif type(encoder).__module__.startswith("recotransfer."):  # others may read their model in a way of their own
            spec["model"] = str(pinned(model, vars(encoder).get("name")))

    return specs


@checked
def stored_encoders(specs: Sequence[Mapping[str, Any]], artifact: Artifact) -> list[Encoder]:
    """The encoders of `store_encoders`; tuned models are read where the artefact lies.

    Raises:
        ArtifactError: a class that is not the package's, and whose module has not been imported yet.
    """
    out = []
    for at, spec in enumerate(specs):
        own = artifact.has_folder(f"encoder {at}")
        model = {"model": str(artifact.folder_of_model(f"encoder {at}"))} if own else {}
        out.append(_built({**spec, **model}, encoders.find_saved))

    return out


@checked
def default_encoders(
    items: Items,
    *,
    text_model: str | Path | None = None,
    image_model: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> list[Encoder]:
    """Encoders for what the items hold: their text columns, their pictures if `image_model` is given, attributes.

    Args:
        items: the catalogue.
        text_model: as in `SentenceText`.
        image_model: as in `PretrainedImage`; pictures are left out without one.
        only: the columns to read; all that have a kind by default.

    Raises:
        InputError: a column of `only` does not exist, or the items hold nothing that these encoders read.
    """
    if only is not None:
        if lost := [c for c in only if c not in items.kinds]:
            raise InputError(f"no column {lost[0]!r} to encode; columns with a kind are {dict(items.kinds)}")

        items = Items(items.ids, items.columns, {c: items.kinds[c] for c in only})

    found: list[Encoder] = []
    if text := items.of_kind("text"):
        found.append(SentenceText(model=text_model, column=text[0] if len(text) == 1 else text))

    if image_model is not None and (images := items.of_kind("image")):
        found.append(PretrainedImage(model=image_model, column=images[0]))

    if columns := [c for c in items.columns.columns if items.kinds.get(c) in ("category", "number")]:
        found.append(TabularAttributes(columns=columns))

    if not found:
        raise InputError(
            f"no encoder fits these items, whose columns are of kinds {dict(items.kinds)}; give a text, category or "
            "number column, or go without content by encoders=[] (on the command line: --no-content)"
        )

    return found
