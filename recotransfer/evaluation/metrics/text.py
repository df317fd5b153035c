"""Metrics of generated text: corpus BLEU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked
from recotransfer.errors import InputError, require
from recotransfer.evaluation.uncertainty import Difference, Estimate, resampled


@checked
def bleu(written: Sequence[str], wanted: Sequence[str], *, draws: int = 1000) -> Estimate:
    """Corpus BLEU in percent, with the defaults of sacrebleu, and its 95% bootstrap interval over sentences.

    Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (2002); Post, "A call for clarity
    in reporting BLEU scores" (2018).

    Args:
        written: generated sentences.
        wanted: reference sentences, in the same order.
        draws: number of bootstrap resamples.
    """
    counts = _ngram_counts(written, wanted)
    values = resampled(lambda rows: _corpus_bleu(counts[rows]), np.arange(len(counts)), draws=draws)
    return Estimate(_corpus_bleu(counts), *(float(p) for p in np.percentile(values, [2.5, 97.5])))


@checked
def bleu_gain(
    written: Sequence[str], against: Sequence[str], wanted: Sequence[str], *, draws: int = 1000
) -> Difference:
    """BLEU of `written` minus that of `against`, with the paired bootstrap of Koehn (2004) over sentences.

    p is twice the share of resamples on the other side of 0, and at least 1 / draws.
    """
    mine, theirs = _ngram_counts(written, wanted), _ngram_counts(against, wanted)
    values = resampled(lambda r: _corpus_bleu(mine[r]) - _corpus_bleu(theirs[r]), np.arange(len(mine)), draws=draws)
    low, high = np.percentile(values, [2.5, 97.5])
    p = max(2 * min(float((values <= 0).mean()), float((values >= 0).mean())), 1 / draws)

    return Difference(_corpus_bleu(mine) - _corpus_bleu(theirs), float(low), float(high), min(p, 1.0))


def _ngram_counts(written: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """(sentences, 10): matching n-grams and generated n-grams for n = 1 to 4, and both lengths."""
    BLEU = require("sacrebleu.metrics.bleu").BLEU

    if len(written) != len(wanted) or not len(written):
        raise InputError(
            f"{len(written)} generated sentences but {len(wanted)} references; give one reference per sentence"
        )

    meter = BLEU(effective_order=True)
    found = [meter.sentence_score(text, [truth]) for text, truth in zip(written, wanted, strict=True)]
    return np.array([[*f.counts, *f.totals, f.sys_len, f.ref_len] for f in found], np.int64)


def _corpus_bleu(counts: NDArray[np.int64]) -> float:
    BLEU = require("sacrebleu.metrics.bleu").BLEU

    total = counts.sum(axis=0).tolist()
    return float(BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9]).score)
