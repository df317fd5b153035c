"""Rows of `adapters.py`: speech and a learning platform, both on synthetic data generated here."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recotransfer import HybridItems, Popularity, Probe, TransferTask, experiments
from recotransfer.adapters import audio, learning
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import LogMelAudio, SentenceText
from recotransfer.encoders.audio import waveform

# -- sound -------------------------------------------------------------------------------------------------------------

VOICES = [
    f"{accent}+{variant}" for accent in ("en-us", "en-gb") for variant in ("m1", "m3", "m5", "m7", "f1", "f3", "f5")
]
MANNERS = {  # pitch, words per minute, amplitude, in espeak-ng's own scales
    "neutral": (50, 165, 100),
    "angry": (55, 195, 150),
    "sad": (35, 135, 70),
    "happy": (68, 180, 115),
    "afraid": (80, 200, 80),
}
NOISE = (9, 16, 25)  # standard deviations of the three, so that the manners overlap
SENTENCES = (
    "the parcel will arrive on monday",
    "nobody told me about the meeting",
    "we have to leave the house now",
    "she put the letter on the table",
    "it has been raining all day",
    "they are waiting for the last bus",
)


def spoken(folder: Path, seed: int = 0) -> pd.DataFrame:
    """Clips that espeak-ng synthesises into `folder`: columns path, manner, voice. No real person, no real emotion."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, rows = np.random.default_rng(seed), []
    for voice in VOICES:
        for manner, centre in MANNERS.items():
            for number, sentence in enumerate(SENTENCES):
                pitch, rate, loud = np.clip(draw.normal(centre, NOISE), (0, 80, 10), (99, 300, 200)).round().astype(int)
                path = folder / f"{voice}-{manner}-{number}.wav"
                settings = ["-v", voice, "-p", str(pitch), "-s", str(rate), "-a", str(loud), "-w", str(path)]
                if not path.exists():
                    subprocess.run(["espeak-ng", *settings, sentence], check=True, capture_output=True)
                rows.append({"path": path, "manner": manner, "voice": voice})
    return pd.DataFrame(rows)


def manners(data: Path, work: Path) -> dict[str, Any]:
    """Manners of speaking of a speech synthesiser, classified for voices that training has not heard."""
    from adapters import result_row

    if shutil.which("espeak-ng") is None:
        return {"skipped": "espeak-ng, which makes the clips, is not installed", "variants": []}
    clips = spoken(work / "clips")
    found = audio.classification(clips["path"], clips["manner"], speakers=clips["voice"])
    waves = [waveform(path, 16_000) for path in clips["path"]]
    simple = np.array([[len(wave), np.log(np.mean(wave**2) + 1e-9)] for wave in waves])
    loudness = [Embeddings(IdMap(np.arange(len(clips))), _scaled(simple), "length and loudness")]
    bands = LogMelAudio().encode(list(clips["path"]))[:, :40]
    means = [Embeddings(IdMap(np.arange(len(clips))), _scaled(bands), "mean spectrum")]
    variants = {
        "length and loudness": {"embeddings": loudness},
        "mean log-mel spectrum": {"embeddings": means},
        "log-mel, pitch and their courses": {},
    }
    outcomes = []
    for name, changes in variants.items():
        task = TransferTask(Probe(), cache=work / "cache", progress=False)
        runs = [
            experiments.run(replace(problem, **changes), task, name=name, calibrate=True, draws=10) for problem in found
        ]
        outcomes.append(experiments.combine_outcomes(runs, found[0].metrics))
    return result_row(
        outcomes, found[0].metrics, "length and loudness", protocol="5 folds of voices; intervals draw voices",
        goal=None, reached=None, clips=len(clips), voices=len(VOICES),
        note="spoken by espeak-ng in five manners that differ in pitch, rate and loudness; no person, no emotion",
    )  # fmt: skip


def _scaled(values: Any) -> Any:
    return ((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)).astype(np.float32)


# -- a learning platform -----------------------------------------------------------------------------------------------

TOPICS = {
    "statistics": "probability regression inference sampling variance bayesian",
    "programming": "python functions testing recursion debugging types",
    "databases": "sql queries indexes transactions schema joins",
    "design": "typography colour layout prototypes usability sketching",
    "history": "revolution empire trade archives medieval industry",
    "biology": "cells genetics evolution enzymes ecology neurons",
    "languages": "grammar vocabulary pronunciation reading listening phrases",
    "economics": "markets prices inflation labour taxation growth",
}
LEVELS, FORMS = ("beginner", "intermediate", "advanced"), ("video lectures", "guided projects", "reading and essays")
HABITS = (
    "minutes per session",
    "share of evenings",
    "share of video watched",
    "quiz attempts",
    "forum posts",
    "days a week",
)


class Platform(NamedTuple):
    """A synthetic learning platform."""

    enrolments: Interactions
    courses: Items
    profiles: pd.DataFrame


def platform(learners: int = 800, courses: int = 120, seed: int = 0) -> Platform:
    """A platform where learners of six habits take courses of the topics, levels and forms that they prefer."""
    draw = np.random.default_rng(seed)
    topic = draw.integers(len(TOPICS), size=courses)
    level, form = draw.integers(len(LEVELS), size=courses), draw.integers(len(FORMS), size=courses)
    words = [draw.choice(text.split(), 2, replace=False) for text in np.array(list(TOPICS.values()))[topic]]
    names = np.array(list(TOPICS))[topic]
    titles = [
        f"{LEVELS[lv]} {name}: {a} and {b}, {FORMS[fm]}"
        for name, (a, b), lv, fm in zip(names, words, level, form, strict=True)
    ]
    habit = draw.integers(6, size=learners)
    likes_topic = draw.dirichlet(np.full(len(TOPICS), 0.3), 6)[habit] * 0.5 + 0.5 * draw.dirichlet(
        np.full(len(TOPICS), 0.25), learners
    )
    likes_level = draw.dirichlet(np.full(len(LEVELS), 0.4), 6)[habit]
    likes_form = draw.dirichlet(np.full(len(FORMS), 0.4), 6)[habit]
    known = draw.lognormal(0, 0.7, courses)
    appeal = known * (likes_topic[:, topic] + 0.01) * (likes_level[:, level] + 0.05) * (likes_form[:, form] + 0.05)
    taken = np.clip(draw.geometric(0.22, learners), 3, 25)
    # The Gumbel trick samples courses without replacement, in the order in which they are taken.
    order = np.argsort(-(np.log(appeal) + draw.gumbel(size=appeal.shape)), axis=1)
    user = np.repeat(np.arange(learners), taken)
    item = np.concatenate([row[:n] for row, n in zip(order, taken, strict=True)])
    time = np.concatenate([np.arange(n, dtype=np.float64) for n in taken])
    centres = draw.normal(size=(6, len(HABITS)))
    profiles = pd.DataFrame(centres[habit] + 0.6 * draw.normal(size=(learners, len(HABITS))), columns=list(HABITS))
    items = Items(IdMap(np.arange(courses)), pd.DataFrame({"title": titles}), {"title": "text"})
    ones = np.ones(len(user), np.float32)
    log = Interactions(IdMap(np.arange(learners)), items.ids, user, item.astype(np.int64), ones, time)
    return Platform(log, items, profiles)


def course_row(protocol: Any) -> Any:
    """The function that makes the row of a protocol of `learning.courses`."""

    def row(data: Path, work: Path) -> dict[str, Any]:
        from adapters import result_row

        made = platform()
        encoders = [SentenceText()]
        plain = learning.courses(made.enrolments, made.courses, protocol=protocol, encoders=encoders)
        grouped = learning.courses(
            made.enrolments, made.courses, profiles=made.profiles, protocol=protocol, encoders=encoders
        )

        def variant(name: str, problem: experiments.Problem, task: TransferTask) -> experiments.Outcome:
            return experiments.run(problem, task, name=name, settings=[{}])

        def hybrid(read: list[Any] | None) -> TransferTask:
            return TransferTask(HybridItems(), encoders=read, cache=work / "cache", progress=False)

        outcomes = [
            variant("popularity", plain, TransferTask(Popularity(), encoders=[])),
            variant("own courses", plain, hybrid([])),
            variant("own courses, content", plain, hybrid(None)),
            variant("own courses, groups", grouped, hybrid([])),
            variant("own courses, groups, content", grouped, hybrid(None)),
        ]
        return result_row(
            outcomes, plain.metrics, "own courses", protocol=grouped.split.name, goal=None, reached=None,
            note="800 made-up learners of six habits, 120 courses; groups are found by k-means",
        )  # fmt: skip

    return row


ROWS = {
    "manners_of_speaking": (manners, []),
    "courses_next": (course_row("next"), []),
    "courses_cold": (course_row("cold courses"), []),
    "courses_new_learners": (course_row("new learners"), []),
}
