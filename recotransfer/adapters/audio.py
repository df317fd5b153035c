"""Sound: labelled clips (spoken words, speakers, emotions) as problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recotransfer import experiments
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import Encoder, LogMelAudio
from recotransfer.experiments import Problem


def classification(
    clips: Sequence[Any],
    labels: Sequence[Any],
    *,
    encoders: Sequence[Encoder] | None = None,
    part: ArrayLike | None = None,
    speakers: Sequence[Any] | None = None,
    folds: int = 5,
) -> list[Problem]:
    """Problems of classifying clips: one per cross-validation fold, or a single one if `part` is given.

    Clips of one speaker, or of one recording, sound alike whatever their label. With `speakers`, all clips of a speaker
    stay in one part, and the bootstrap resamples whole speakers.

    Args:
        clips: paths or bytes of WAV files, or {"array": samples, "rate": hertz}.
        labels: label of each clip; None is unlabelled.
        encoders: encoders of the column "audio": `LogMelAudio()` by default, `PretrainedAudio` for a pretrained model.
        part: "train", "valid" or "test" for each clip.
        speakers: speaker of each clip; None treats every clip as independent.
        folds: number of folds if `part` is None.
    """
    items = Items(IdMap(np.arange(len(clips))), experiments.column(clips, "audio"))
    relations = Interactions.from_labels(labels, items.ids)
    groups = experiments.group_codes(speakers, len(items), "speakers")

    if part is not None:
        splits = [experiments.split_items(relations, part, groups=speakers)]
    else:
        splits = list(experiments.fold_items(relations, folds=folds, groups=speakers))

    encoders = encoders or [LogMelAudio()]

    return [
        Problem("clips", items, split, experiments.LABEL_METRICS, encoders=encoders, groups=groups) for split in splits
    ]
