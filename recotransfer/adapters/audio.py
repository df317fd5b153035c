"""Sound: clips with labels, such as words, speakers or emotions, as problems of the core."""

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
    """Which label each clip bears, one problem for each fold, or one alone where `part` deals the clips out.

    Clips of one speaker, or of one recording, sound alike whatever their label; with `speakers` none stands on two
    sides of a split, and intervals draw whole speakers.

    Args:
        clips: paths or bytes of WAV files, or {"array": samples, "rate": hertz}.
        labels: of each; None is unlabelled.
        encoders: what reads the column "audio"; `LogMelAudio()` by default, `PretrainedAudio` for a pretrained model.
        part: "train", "valid" or "test" of each.
        speakers: of each clip; None lets clips stand alone.
        folds: number of problems where `part` is None.
    """
    items = Items(IdMap(np.arange(len(clips))), experiments.column(clips, "audio"))
    relations, groups = (
        Interactions.from_labels(labels, items.ids),
        experiments.grouped(speakers, len(items), "speakers"),
    )
    if part is not None:
        splits = [experiments.split_items(relations, part, groups=speakers)]
    else:
        splits = list(experiments.fold_items(relations, folds=folds, groups=speakers))

    encoders = encoders or [LogMelAudio()]

    return [
        Problem("clips", items, split, experiments.LABEL_METRICS, encoders=encoders, groups=groups) for split in splits
    ]
