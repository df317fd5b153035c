"""The variants of a benchmark, and how they are made from texts such as "EASE(reg=100)"."""

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

ABLATION = " without content"  # suffix of the name of a variant's ablation
GUARDED = " guarded"  # suffix of the name of a variant's guarded form
_FLAGSHIP = "LearnedHybrid"
_DEFAULTS = (
    _FLAGSHIP,
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
)
_DENSE_ITEMS = 25_000  # larger catalogues get the sparse form of items x items models


@checked_class
@dataclass(frozen=True)
class Variant:
    """A recommender in a benchmark, one row of its table.

    Attributes:
        name: unique in a benchmark.
        recommender: not fitted; its settings are the first trial if it is tuned, the final ones if not.
        content: whether it gets the items' embeddings.
        tuned: whether its settings are chosen on validation.
        ablation_of: name of the variant of which this is the ablation: the same model without content, tuned with the
            same number of trials.
    """

    name: str
    recommender: Recommender
    content: bool = True
    tuned: bool = True
    ablation_of: str | None = None

    @property
    def folder(self) -> str:
        """Name of the variant's folder: its name with unsafe characters replaced and, if there were any, a hash."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")
        return safe if safe == self.name else f"{safe}-{digest([self.name])[:6]}"


@checked
def variants_of(words: Sequence[str], *, items: int = 0, content: bool = True) -> list[Variant]:
    """Variants from texts such as "EASE", "EASE(reg=100)" or "mine=my_package.my_module:MyRecommender".

    A bare name is tuned; settings in brackets are used as they are, without tuning. A recommender that works with and
    without content also gets its ablation.

    Args:
        words: the texts; an empty list stands for all recommenders of the package.
        items: number of items in the catalogue; large ones get the sparse form of items x items models.
        content: whether there are embeddings. Without them, recommenders that need content are left out of the
            defaults.

    Raises:
        InputError: two variants have the same name, or one needs content and there is none.
    """
    variants: list[Variant] = []
    for word in words or _default_words(content):
        variant = _variant_of(word, items)
        needs_content = variant.recommender.needs_items
        if needs_content and not content:
            raise InputError(f"{variant.name} ranks by content alone, and there is none; leave it out or give content")

        optional_content = variant.recommender.scores_new_items and not needs_content
        variant = replace(variant, content=content and (needs_content or optional_content))
        variants.append(variant)
        if optional_content and content:
            variants.append(replace(variant, name=variant.name + ABLATION, content=False, ablation_of=variant.name))

    check_labels(variants)

    return variants


def check_labels(variants: Sequence[Variant]) -> None:
    """Raise `InputError` if two variants, guarded forms included, have the same name."""
    names = [variant.name for variant in variants] + [
        variant.ablation_of + GUARDED for variant in variants if variant.ablation_of is not None
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two variants are called {twice[0]!r}; rename one of them, as in 'other=EASE'")


def _default_words(content: bool) -> list[str]:
    """The recommenders of the package, without those that need content if there is none."""
    return [word for word in _DEFAULTS if content or not recommenders.find(word)().needs_items]


def _variant_of(text: str, items: int) -> Variant:
    label, spec = split_label(text)
    named = parse_named(spec)
    parameters = inspect.signature(recommenders.find(named.name)).parameters
    # neighbours=None is the dense items x items solve.
    dense = "neighbours" in parameters and parameters["neighbours"].default is None
    recommender = recommenders.make(spec, **({"neighbours": 200} if dense and items > _DENSE_ITEMS else {}))

    return Variant(label or spec, recommender, tuned=named.settings is None and bool(recommender.search_space))


def guarded(variant: Variant) -> Variant:
    """The guarded form of a variant: content only where the guard found that it helps."""
    return replace(variant, name=variant.name + GUARDED, tuned=False)
