"""Classes by name: a short name for the package's own, `package.module:Class` for anyone's.

Names come from Python code, the command line and saved folders. A saved folder never decides what is imported: a class
from elsewhere must have been imported before a folder that names it is loaded.

>>> from recotransfer.registry import recommenders
>>> recommenders.find("EASE").__name__
'EASE'
>>> recommenders.find("EAZE")
Traceback (most recent call last):
...
recotransfer.errors.InputError: no recommender is called 'EAZE'; did you mean 'EASE'? known are ALS, AdaptiveFusion, ...
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from recotransfer.errors import ArtifactError, InputError
from recotransfer.settings import check_names, check_settings, parse_named


def import_module(module: str, asked_for: str) -> ModuleType:
    """The module of that name.

    Raises:
        InputError: the module cannot be imported; the message begins with `asked_for`.
    """
    try:
        return importlib.import_module(module)
    except Exception as cause:  # a module from elsewhere may raise anything
        problem = str(cause) if isinstance(cause, ImportError) else f"{type(cause).__name__}: {cause}"
        raise InputError(
            f"{asked_for} cannot be imported ({problem}); give package.module:Class, with the package on PYTHONPATH"
        ) from cause


class Registry:
    """The classes of one kind by name, each imported when it is first asked for.

    Args:
        kind: what messages call such a class, such as "recommender".
        contract: "module:Class" of the base class, or of a protocol whose public methods every class has.
        homes: short name -> module, for the package's own classes.
    """

    def __init__(self, kind: str, contract: str, homes: Mapping[str, str]) -> None:
        self.kind = kind
        self.contract = contract
        self.homes = dict(homes)

    @property
    def names(self) -> list[str]:
        """Short names of the package's own classes."""
        return sorted(self.homes)

    def find(self, name: str) -> type[Any]:
        """The class called `name`: a short name, or "package.module:Class", which is imported.

        Raises:
            InputError: no class has that name, its module cannot be imported, or it does not meet the contract.
        """
        return self._class(name, self._module(name))

    def find_saved(self, name: str) -> type[Any]:
        """The class called `name` in a saved file; unlike `find`, this imports no module from elsewhere.

        Raises:
            ArtifactError: no such class, or its module has not been imported yet.
        """
        module = name.rpartition(":")[0] if isinstance(name, str) else ""
        if module and module not in sys.modules:
            raise ArtifactError(f"the {self.kind} was saved as {name!r}; import {module} first, then load again "
                                f"(on the command line: recotransfer --import {module} ...)")  # fmt: skip

        try:
            return self.find(name)
        except InputError as cause:
            where = "defined in the script that saved it" if module == "__main__" else "named in a saved folder"
            raise ArtifactError(f"{cause} ({where})") from None

    def name_of(self, found: type[Any]) -> str:
        """The name by which `find` finds the class."""
        ours = self.homes.get(found.__name__) == found.__module__
        return found.__name__ if ours else f"{found.__module__}:{found.__qualname__}"

    def name_to_save(self, found: type[Any]) -> str:
        """The class's name, for a file or another process.

        Raises:
            InputError: `find` would not find the class by its name, so it could be saved but never loaded.
        """
        name = self.name_of(found)
        there: Any = sys.modules.get(found.__module__)
        for part in found.__qualname__.split("."):
            there = getattr(there, part, None)

        if there is not found:
            raise InputError(f"{name!r} cannot be found by its name; define the {self.kind} at the top of a module")

        return name

    def make(self, text: str, **more: Any) -> Any:
        """An object made from "Name", "Name(setting=value)" or "package.module:Class(...)", with its settings checked.

        Args:
            text: name and settings; values are Python literals.
            more: further settings; those in `text` take precedence.

        Raises:
            InputError: there is no such class, or a setting is unknown, missing or invalid.

        >>> recommenders.make("EASE(reg=100)").reg
        100
        """
        named = parse_named(text)
        kind = self.find(named.name)
        given = {**more, **(named.settings or {})}
        check_names(kind, given, repr(text))

        try:
            made = kind(**given)
        except TypeError as cause:
            raise InputError(f"{text!r}: {cause}") from None

        checked = getattr(made, "check_settings", None)
        if checked is None:
            check_settings(made)
        else:  # may also check how settings go together
            checked()

        return made

    def _module(self, name: str) -> ModuleType:
        if not isinstance(name, str):
            raise InputError(f"{self.kind} names must be text, got {name!r}")

        module = name.rpartition(":")[0] or self.homes.get(name)
        if module is None:
            near = difflib.get_close_matches(name, self.homes, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"no {self.kind} is called {name!r}; {hint}known are {', '.join(self.names)}, "
                "and any class of yours as package.module:Class"
            )

        return import_module(module, repr(name))

    def _class(self, name: str, module: ModuleType) -> type[Any]:
        found: Any = module
        for part in name.rpartition(":")[2].split("."):
            found = getattr(found, part, None)

        if not self.accepts(found):
            raise InputError(f"{name!r} is not a class that meets the {self.kind} contract, {self.contract}")

        return found  # type: ignore[no-any-return]

    def accepts(self, found: object) -> bool:
        """Whether `found` is a concrete class that meets the contract."""
        module, _, name = self.contract.partition(":")
        contract = getattr(importlib.import_module(module), name)
        if not inspect.isclass(found) or inspect.isabstract(found) or getattr(found, "_is_protocol", False):
            return False
        if not getattr(contract, "_is_protocol", False):
            return issubclass(found, contract)

        methods = [name for name, member in vars(contract).items() if name[0] != "_" and inspect.isfunction(member)]

        return all(callable(getattr(found, name, None)) for name in methods)


def _homes(**modules: str) -> dict[str, str]:
    """Short name -> module; each keyword is a module, with __ for a dot, and lists its short names."""
    return {
        name: f"recotransfer.{module.replace('__', '.')}" for module, names in modules.items() for name in names.split()
    }


recommenders = Registry(
    "recommender",
    "recotransfer.recommenders.base:Recommender",
    _homes(
        recommenders__content="ContentProfiles RidgeProfiles",
        recommenders__ease="EASE",
        recommenders__factors="ALS BPR",
        recommenders__fusion="RankFusion",
        recommenders__hybrid="HybridItems",
        recommenders__item_knn="ItemKNN",
        recommenders__learned_hybrid="LearnedHybrid",
        recommenders__learned_fusion="AdaptiveFusion StackedFusion WeightedFusion",
        recommenders__popularity="Popularity",
        recommenders__probe="Probe",
        recommenders__ranker="HybridRanker",
        recommenders__sasrec="SASRec",
        recommenders__transition_rings="TransitionRings",
    ),
)
encoders = Registry(
    "encoder",
    "recotransfer.encoders.base:Encoder",
    _homes(
        encoders__audio="LogMelAudio PretrainedAudio",
        encoders__image="PretrainedImage",
        encoders__image_grid="ImageGrid",
        encoders__sequence="KmerSequence",
        encoders__static="StaticText",
        encoders__tabular="StandardTable TabularAttributes",
        encoders__text="HashingText SentenceText",
        encoders__words="TfidfText",
    ),
)
transfers = Registry(
    "transfer",
    "recotransfer.transfer.base:Transfer",
    _homes(
        transfer__contrastive="ContrastiveHead",
        transfer__domain_adaptation="Adversarial Coral MMDMap",
        transfer__linear="LearnedMetric RidgeMap SoftThreshold Whitening",
        transfer__multitask="MultiTask",
    ),
)
tuners = Registry(
    "tuner",
    "recotransfer.transfer.base:Tuner",
    _homes(
        transfer__distillation="Distil",
        transfer__finetuning="FineTune",
        transfer__static_distillation="DistilStatic",
    ),
)
indexes = Registry(
    "index",
    "recotransfer.retrieval.base:Index",
    _homes(retrieval__exact="ExactIndex", retrieval__faiss="FaissIndex"),
)
