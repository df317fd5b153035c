"""Choose default encoders for a catalogue; save and load encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from recotransfer.arguments import checked
from recotransfer.data import Items
from recotransfer.encoders.base import Encoder, encoder_spec
from recotransfer.encoders.image import PretrainedImage
from recotransfer.encoders.models import files_to_store, model_folder, pinned, revision_of, unpinned
from recotransfer.encoders.tabular import TabularAttributes
from recotransfer.encoders.text import SentenceText
from recotransfer.errors import InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.registry import encoders


@checked
def encoder_from_spec(spec: Mapping[str, Any]) -> Encoder:
    """Build an encoder from what `encoder_spec` returned: the class under "class", the other entries its settings.

    Raises:
        InputError: the class or a setting is unknown.
    """
    return _build(spec, encoders.find)


def _build(spec: Mapping[str, Any], find: Callable[[str], type[Any]]) -> Encoder:
    settings = dict(spec)
    name = settings.pop("class", None)
    kind = find(name)

    try:
        return cast(Encoder, kind(**settings))
    except TypeError as cause:
        raise InputError(f"the settings of {name} do not fit this version: {cause}") from cause


@checked
def store_encoders(given: Sequence[Encoder], writer: ArtifactWriter) -> list[dict[str, Any]]:
    """Store encoders in an artefact and return their specs; models in local folders are copied into the artefact.

    A folder with code or pickled weights is not copied: its spec has the absolute path and the revision. The spec of a
    model from the hub has the revision that was used in the fit.
    """
    specs = [encoder_spec(encoder) for encoder in given]
    for at, (encoder, spec) in enumerate(zip(given, specs, strict=True)):
        model = spec.get("model")
        if not isinstance(model, (str, Path)):
            continue

        folder = model_folder(model) if Path(unpinned(model)).is_dir() else None
        files = None if folder is None else files_to_store(folder)
        if folder is not None and files is not None:
            writer.folder_of_model(f"encoder {at}", folder, files)
            spec["model"] = None
        elif type(encoder).__module__.startswith("recotransfer."):  # other encoders may not understand a revision
            spec["model"] = str(pinned(model, vars(encoder).get("name")))

    return specs


@checked
def stored_encoders(specs: Sequence[Mapping[str, Any]], artifact: Artifact) -> list[Encoder]:
    """Load the encoders that `store_encoders` saved; their models are read from the artefact on first use.

    Models are pinned to their revision, so that another model saved there in the meantime is rejected.

    Raises:
        ArtifactError: a class is not one of this package, and its module has not been imported yet.
    """
    out = []
    for at, spec in enumerate(specs):
        settings = dict(spec)
        if artifact.has_folder(f"encoder {at}"):
            settings["model"] = str(artifact.folder_of_model(f"encoder {at}").absolute())
            if ":" not in str(spec["class"]):  # encoders of other packages may not understand a revision
                settings["model"] += f"@{revision_of(artifact.digests_of_model(f'encoder {at}'))}"

        out.append(_build(settings, encoders.find_saved))

    return out


@checked
def default_encoders(
    items: Items,
    *,
    text_model: str | Path | None = None,
    image_model: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> list[Encoder]:
    """Choose encoders for the items: for text columns, pictures (if `image_model` is given) and attributes.

    Args:
        items: the catalogue.
        text_model: as in `SentenceText`.
        image_model: as in `PretrainedImage`; None ignores pictures.
        only: columns to read; None reads all that have a kind.

    Raises:
        InputError: a column of `only` has no kind or does not exist, or no column suits any of these encoders.
    """
    if only is not None:
        if lost := [c for c in only if c not in items.kinds]:
            raise InputError(f"no column {lost[0]!r} to encode; columns with a kind are {dict(items.kinds)}")

        items = Items(items.ids, items.columns, {c: items.kinds[c] for c in only})

    chosen: list[Encoder] = []
    if text := items.of_kind("text"):
        chosen.append(SentenceText(model=text_model, column=text[0] if len(text) == 1 else text))

    if image_model is not None and (images := items.of_kind("image")):
        chosen.append(PretrainedImage(model=image_model, column=images[0]))

    if columns := [c for c in items.columns.columns if items.kinds.get(c) in ("category", "number")]:
        chosen.append(TabularAttributes(columns=columns))

    if not chosen:
        raise InputError(
            f"no encoder fits these items, whose columns are of kinds {dict(items.kinds)}; give a text, category or "
            "number column, or use no content with encoders=[] (on the command line: --no-content)"
        )

    return chosen
