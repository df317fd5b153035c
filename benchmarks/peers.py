r"""Recommenders of other libraries as variants of `recotransfer benchmark`, beside the package's own.

    PYTHONPATH=benchmarks recotransfer benchmark --items items.csv --events events.csv --out bench \
        --split leave-last --model EASE --model lightfm=peers:LightFM --model rectools=peers:RecToolsSASRec

They are tuned, tested and reported like every other variant. Each needs its library, installed after the package
(tested with Python 3.11, NumPy 2.4 and PyTorch 2.13 on CPU):

    LightFM 1.17     pip install "setuptools>=77,<82" wheel "cython<3"
                     pip install --no-build-isolation --no-use-pep517 lightfm==1.17
                     It needs a C compiler and works with pandas 3 too; `pip check` is clean. RecTools' fork of
                     it installs in one step instead: pip install rectools-lightfm==1.17.3
    RecTools 0.19.0  pip install "pandas>=2.3,<3" pytorch-lightning==2.5.2 "attrs<24" "typeguard>=4.1,<5" pydantic
                     pip install --no-deps rectools==0.19.0
                     It fails with pandas 3. Its metadata also require NumPy 1 (before Python 3.13) and for
                     `pm-implicit`, which would overwrite the package `implicit`: hence --no-deps. `pip check` then
                     complains, but SASRec runs.

Left out are RecTools' EASE, ALS and nearest neighbours, which the package has by the same formulas or from `implicit`;
and RecBole, which needs NumPy 1.26 and SciPy 1.10 and so cannot share an environment with the package.

Run as a script, this file reports which of the libraries are installed and prints the command line for them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import MissingExtraError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.factor_model import FactorModel

_USERS = 512  # histories encoded at a time


class LightFM(FactorModel):
    """LightFM: matrix factorisation with item biases and the WARP loss (Kula, 2015; Weston et al., 2011), on ids only.

    The distinct items of each user are the positive pairs; event weights are ignored. Users are learned rows, so new
    users need a refit.

    Args:
        dim: number of factors.
        learning_rate: initial step size of Adagrad.
        reg: L2 penalty on user and item factors.
        max_sampled: maximum number of negatives sampled per positive until one ranks too high.
        epochs: passes over the data.
        seed: random seed.
    """

    library: ClassVar[tuple[str, str]] = ("lightfm", "--no-build-isolation --no-use-pep517 lightfm==1.17")
    scores_new_users: ClassVar[bool] = False
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim": (16, 256),
        "learning_rate": (0.005, 0.2),
        "reg": (1e-7, 1e-4),
        "max_sampled": (5, 50),
        "epochs": (10, 100),
    }

    def __init__(
        self,
        *,
        dim: int = 64,
        learning_rate: float = 0.05,
        reg: float = 1e-6,
        max_sampled: int = 10,
        epochs: int = 30,
        seed: int = 0,
    ) -> None:
        self.dim, self.learning_rate, self.reg = dim, learning_rate, reg
        self.max_sampled, self.epochs, self.seed = max_sampled, epochs, seed

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        model = _library(type(self)).LightFM(
            no_components=self.dim,
            loss="warp",
            learning_rate=self.learning_rate,
            item_alpha=self.reg,
            user_alpha=self.reg,
            max_sampled=self.max_sampled,
            random_state=self.seed,
        )
        distinct = _distinct(events)
        pairs = (distinct.user.astype(np.int32), distinct.item.astype(np.int32))  # LightFM reads no other integers
        table = sparse.coo_matrix((np.ones(len(distinct), np.float32), pairs), (len(events.users), len(events.items)))
        model.fit(table, epochs=self.epochs, num_threads=1)  # more threads race, and a seed no longer fixes the result
        self.users_ = np.pad(model.user_embeddings, ((0, 0), (0, 1)), constant_values=1)  # a user's bias ranks nothing
        self._set_factors(np.column_stack([model.item_embeddings, model.item_biases]))

    def _queries(self, events: Interactions) -> Float:
        return self.users_[self.events_.users.positions(events.users.ids)]

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("user_factors", self.users_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.users_ = artifact.array("user_factors")


class RecToolsSASRec(FactorModel):
    """RecTools' SASRec: next-item prediction (Kang and McAuley, 2018) with a full softmax, on ids only.

    A user is represented by the network's state after their last `length` distinct items, so new users need no refit.
    Items without training events are unknown to it and come last, by popularity. RecTools has early stopping only with
    a custom trainer, so `epochs` is tuned instead.

    Args:
        dim: width of the network, a multiple of `heads`.
        heads: attention heads.
        blocks: attention layers.
        dropout: share of values zeroed in training.
        length: number of newest items of a history that are read.
        learning_rate: step size of Adam.
        batch_size: users per step.
        epochs: passes over the data.
        seed: random seed.
    """

    library: ClassVar[tuple[str, str]] = ("rectools.models", "--no-deps rectools==0.19.0")
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dropout": (0.1, 0.7),
        "learning_rate": (0.0005, 0.005),
        "epochs": (10, 100),
    }

    def __init__(
        self,
        *,
        dim: int = 64,
        heads: int = 1,
        blocks: int = 2,
        dropout: float = 0.3,
        length: int = 50,
        learning_rate: float = 0.003,
        batch_size: int = 128,
        epochs: int = 30,
        seed: int = 0,
    ) -> None:
        self.dim, self.heads, self.blocks, self.dropout, self.length = dim, heads, blocks, dropout, length
        self.learning_rate, self.batch_size, self.epochs, self.seed = learning_rate, batch_size, epochs, seed

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        import torch

        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), _quiet():
            torch.manual_seed(self.seed)
            model = self._new().fit(_dataset(events))
        self._take(model)
        factors = np.zeros((len(events.items), self.dim), np.float32)
        factors[self.known_] = self._vectors()[1:].numpy()
        self._set_factors(factors)

    def _new(self) -> Any:
        models = _library(type(self))
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its import sets another
        return models.SASRecModel(
            n_factors=self.dim,
            n_heads=self.heads,
            n_blocks=self.blocks,
            dropout_rate=self.dropout,
            session_max_len=self.length,
            lr=self.learning_rate,
            batch_size=self.batch_size,
            epochs=self.epochs,
            deterministic=True,
        )

    def _take(self, model: Any) -> None:
        """Keep the network, and the catalogue position of each of its items; its item 0 is padding."""
        self.network_ = model.torch_model.cpu().eval()
        self.known_ = np.asarray(model.data_preparator.get_known_item_ids(), np.int64)

    def _vectors(self) -> Any:
        import torch

        with torch.inference_mode():
            return self.network_.item_model.get_all_embeddings()

    def _queries(self, events: Interactions) -> Float:
        import torch

        number = np.zeros(len(self.catalogue_), np.int64)
        number[self.known_] = np.arange(1, len(self.known_) + 1)
        events = _distinct(events)
        events = events.select(np.flatnonzero(number[events.item]))
        sizes = np.diff(events.offsets)
        last = np.repeat(events.offsets[1:], sizes) - np.arange(len(events))  # 1 is a user's newest event
        near = last <= self.length
        sessions = np.zeros((len(events.users), self.length), np.int64)
        sessions[events.user[near], -last[near]] = number[events.item[near]]
        queries, vectors = np.zeros((len(events.users), self.dim), np.float32), self._vectors()
        rows = np.flatnonzero(sizes)  # the rest have no history and stay zero
        with torch.inference_mode():
            for first in range(0, len(rows), _USERS):
                some = rows[first : first + _USERS]
                states = self.network_.encode_sessions({"x": torch.from_numpy(sessions[some])}, vectors)
                queries[some] = states[:, -1].numpy()
        return queries

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        known = np.isin(np.arange(len(self.catalogue_)), self.known_)
        return super()._rank(events, k, exclude, known if mask is None else known & mask)

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        state = self.network_.state_dict()
        writer.json("network", list(state))
        for number, weight in enumerate(state.values()):
            writer.array(f"network.{number}", weight.numpy())

    def _read(self, artifact: Artifact) -> None:
        import torch

        super()._read(artifact)
        with _quiet():
            model = self._new()
            model._build_model_from_dataset(_dataset(self.events_))  # RecTools' own loading unpickles
        names = artifact.json("network")
        weights = {name: torch.tensor(artifact.array(f"network.{number}")) for number, name in enumerate(names)}
        model.torch_model.load_state_dict(weights)
        self._take(model)


def _distinct(events: Interactions) -> Interactions:
    """The newest event of each user and item, in the order of `events`, which are sorted by user and time."""
    events = events.select(np.flatnonzero(events.weight > 0))
    pairs = events.user * len(events.items) + events.item
    _, newest = np.unique(pairs[::-1], return_index=True)
    return events.select(np.sort(len(pairs) - 1 - newest))


def _dataset(events: Interactions) -> Any:
    """The distinct items of each user as a RecTools data set: positions are ids, and the order is the time."""
    from rectools.dataset import Dataset

    distinct = _distinct(events)
    when = pd.to_datetime(np.arange(len(distinct)), unit="s")
    table = {"user_id": distinct.user, "item_id": distinct.item, "weight": 1.0, "datetime": when}
    return Dataset.construct(pd.DataFrame(table))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of RecTools and its libraries about versions and about features that are not used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


VARIANTS = (LightFM, RecToolsSASRec)


def _library(variant: type[LightFM] | type[RecToolsSASRec]) -> ModuleType:
    """Import the library of a variant, or raise an error with the pip command that installs it."""
    module, line = variant.library
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingExtraError(
            f"{variant.__name__} needs {module}, which cannot be imported ({cause}); "
            f"install it with: pip install {line} "
            "(further requirements: python benchmarks/peers.py --help)"
        ) from cause


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    words = []
    for variant in VARIANTS:
        try:
            _library(variant)
            print(f"{variant.__name__:15s} found")
            words.append(f"--model peers:{variant.__name__}")
        except MissingExtraError as cause:
            print(f"{variant.__name__:15s} missing: {cause}")
    if words:
        print("PYTHONPATH=benchmarks recotransfer benchmark --items ITEMS --events EVENTS --out OUT", *words)


if __name__ == "__main__":
    main()
