"""The lines of a benchmark: what each variant is, and its work from tuning to test, done in a process of its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from recotransfer.arguments import checked, checked_class
from recotransfer.errors import InputError
from recotransfer.io.artifacts import digest
from recotransfer.recommenders import Recommender
from recotransfer.registry import recommenders
from recotransfer.settings import parse_named, split_label

ABLATION, GUARDED = (
    " without content",
    " guarded",
)  # what the names of a variant's ablation and of its guarded form end in
_DENSE_ITEMS = 25_000  # beyond this many, items x items solves give way to their sparse form


@checked_class
@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        name: unique in a benchmark.
        recommender: not fitted; its settings are the first trial, or the only ones.
        content: whether it is given the items' embeddings.
        tuned: whether its settings are chosen on validation; otherwise they are taken as given.
        ablation_of: the variant whose ablation this is: the same model without content, with the same number of trials.
    """

    name: str
    recommender: Recommender
    content: bool = True
    tuned: bool = True
    ablation_of: str | None = None

    @property
    def folder(self) -> str:
        """Name of the variant's folder: its own, with what file systems dislike replaced."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")
        return safe if safe == self.name else f"{safe}-{digest([self.name])[:6]}"


@checked
def variants_of(words: Sequence[str], *, items: int = 0, content: bool = True) -> list[Variant]:
    """Variants from words such as "EASE", "mine=my_package.my_module:MyRecommender", "EASE(reg=100)".

    A name alone is tuned; brackets give settings, and those are taken as they are, without tuning. A recommender that
    can do with and without content gets its ablation beside it. With no words: every recommender of the package.

    Args:
        words: see above.
        items: size of the catalogue; great ones get the sparse form of models that hold items x items.
        content: whether there are embeddings; without, recommenders that need them are left out or refused.
    """
    variants: list[Variant] = []
    for word in words or _default_words(items, content):
        variant = _variant_of(word, items)
        needs = variant.recommender.needs_items
        if needs and not content:
            raise InputError(f"{variant.name} ranks by content alone, and there is none; leave it out or give content")

        both = variant.recommender.scores_new_items and not needs
        variant = replace(variant, content=content and (needs or both))
        variants.append(variant)
        if both and content:
            variants.append(replace(variant, name=variant.name + ABLATION, content=False, ablation_of=variant.name))

    check_labels(variants)

    return variants


def check_labels(variants: Sequence[Variant]) -> None:
    """Refuse variants whose results would fall into one place, those of the guard counted in."""
    names = [variant.name for variant in variants] + [
        variant.ablation_of + GUARDED for variant in variants if variant.ablation_of is not None
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two variants are called {twice[0]!r}; name one of them otherwise, as in 'other=EASE'")


def _default_words(items: int, content: bool) -> list[str]:
    words = [
        "HybridItems",
        "HybridRanker",
        "SASRec",
        "EASE",
        "ItemKNN",
        "ALS",
        "BPR",
        "RidgeProfiles",
        "ContentProfiles",
        "Popularity",
    ]

    return [word for word in words if content or not recommenders.find(word)().needs_items]


def _variant_of(text: str, items: int) -> Variant:
    label, spec = split_label(text)
    named = parse_named(spec)
    known = inspect.signature(recommenders.find(named.name)).parameters
    dense = "neighbours" in known and known["neighbours"].default is None
    recommender = recommenders.make(spec, **({"neighbours": 200} if dense and items > _DENSE_ITEMS else {}))

    return Variant(label or spec, recommender, tuned=named.settings is None and bool(recommender.search_space))


def guarded(variant: Variant) -> Variant:
    """The line of what the guard lets through of a variant."""
    return replace(variant, name=variant.name + GUARDED, tuned=False)
