"""Arguments of wrong types are refused in one sentence, by every public function and method.

Each is called with one odd argument at a time, the others valid. It may succeed, where the value has a meaning there,
or raise an error of the package; an error of another type would be a traceback from inside numpy or pandas.
"""

import copy
import importlib
import inspect
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import recotransfer as rt
from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items
from recotransfer.encoders import Fusion, HashingText, SentenceText, encode_items
from recotransfer.encoders.base import encoder_spec
from recotransfer.errors import InputError, RecoTransferError
from recotransfer.evaluation import metrics, splits
from recotransfer.evaluation.uncertainty import Difference, Estimate
from recotransfer.experiments import Outcome, Predictions, Problem, accuracy, split_items
from recotransfer.experiments.benchmark import Variant, runner
from recotransfer.experiments.benchmark.work import run_variant
from recotransfer.io.artifacts import ArtifactWriter, open_artifact
from recotransfer.recommenders import EASE, ContentProfiles, Popularity
from recotransfer.retrieval import ExactIndex
from recotransfer.task import TransferTask
from recotransfer.transfer import FineTune, Pairs, TextNoise, Transfer, Tuner, Whitening

ROOMS = [
    "data", "retrieval", "encoders", "recommenders", "diagnostics", "transfer", "experiments", "experiments.benchmark",
    "evaluation.metrics", "evaluation.splits", "io.readers", "serving.batch",
]  # fmt: skip
FRAME = pd.DataFrame({"user": ["u0"], "item": ["i0"], "price": [1.0]})
ODD = {
    "None": None, "-1": -1, "1.5": 1.5, "text": "x", "list": [], "texts": ["x"], "dict": {}, "object": object(),
    "nan": np.nan, "True": True, "DataFrame": FRAME,
}  # fmt: skip


def public_names():
    yield from ((rt, name) for name in rt.__all__)
    for room in ROOMS:
        module = importlib.import_module(f"recotransfer.{room}")
        names = getattr(module, "__all__", None) or [
            name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
        ]
        yield from ((module, name) for name in names if name[0] != "_")


def public_calls():
    """Every public function, constructor and method by name; those that a class inherits are its base's."""
    found = {}
    for module, name in public_names():
        thing = getattr(module, name)
        home = getattr(thing, "__module__", "")
        if inspect.isfunction(thing):
            found[f"{home}.{name}"] = thing
        elif inspect.isclass(thing) and not issubclass(thing, tuple) and not getattr(thing, "_is_protocol", False):
            if hasattr(thing, "__dataclass_fields__") or "__init__" in vars(thing):
                found[f"{home}.{name}"] = thing
            for method, member in vars(thing).items():
                if method[0] != "_" and (inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod))):
                    found[f"{home}.{name}.{method}"] = thing
    return {name.removeprefix("recotransfer."): thing for name, thing in sorted(found.items())}


CALLS = public_calls()


# Constructors of these store what they are given: settings are checked when they are used.
STORED = {name for name, thing in CALLS.items() if inspect.isclass(thing) and name.endswith(f".{thing.__name__}")
          and issubclass(thing, (rt.Recommender, Transfer, Tuner))}  # fmt: skip
# What one call cannot give an example of: models that are loaded, processes that are started.
NO_EXAMPLE = {
    "encoders.image.PretrainedImage.saved", "encoders.static.StaticText.saved", "encoders.text.SentenceText.saved",
}  # fmt: skip


class World:
    """A small shop, and an example of everything that a public function may ask for."""

    def __init__(self, folder):
        draw = np.random.default_rng(0)
        ids = IdMap([f"i{n}" for n in range(30)])
        people = IdMap([f"u{n}" for n in range(20)])
        user = np.repeat(np.arange(20), 8)
        item = np.concatenate([draw.permutation(30)[:8] for _ in range(20)])
        self.log = Interactions(people, ids, user, item, np.ones(160, np.float32), np.arange(160.0))
        names = [f"thing {n % 5} no {n}" for n in range(30)]
        frame = pd.DataFrame({"title": names, "price": np.arange(30.0), "colour": ["red", "blue", "green"] * 10})
        self.items = Items(ids, frame, {"title": "text", "price": "number", "colour": "category"})
        self.vectors = Embeddings(ids, draw.normal(size=(30, 6)).astype(np.float32))
        self.table = pd.DataFrame(
            {"user": np.array(people.ids)[user], "item": ids.ids[item], "timestamp": np.arange(160)}
        )
        self.split = splits.leave_last(self.log)
        self.task = TransferTask(ContentProfiles(), encoders=[HashingText()], progress=False)
        self.task.fit(self.items, self.log)
        self.model = EASE(neighbours=5).fit(self.log)
        self.lists = self.model.recommend(k=5)
        self.hits = metrics.hits(self.lists, self.split.test)
        truth = draw.random((12, 3)) < 0.5
        self.predictions = Predictions(np.arange(12), IdMap(list("abc")), truth,
                                       draw.random((12, 3)).astype(np.float32), np.arange(12))  # fmt: skip
        self.outcome = Outcome("one", self.task, self.predictions, {"accuracy": Estimate(0.5, 0.4, 0.6)}, {}, 0.5, 1.0)
        labels = Interactions.from_labels(list("abc") * 10, ids)
        dealt = split_items(labels, ["train"] * 20 + ["valid"] * 5 + ["test"] * 5)
        self.problem = Problem("one", self.items, dealt, {"accuracy": accuracy}, embeddings=[self.vectors])
        self.folder = folder
        self.saved = folder / "task"
        self.task.save(self.saved)
        self.artifact = open_artifact(self.saved)
        self.read = rt.read_items(self.items.columns.assign(item_id=ids.ids))
        self.report = encode_items(self.items, HashingText(), progress=False).report
        self.index = ExactIndex().build(self.vectors.vectors)
        self.boxes = pd.DataFrame({"picture": ["p"], "label": ["a"], "xmin": [0.0], "ymin": [0.0], "xmax": [4.0],
                                   "ymax": [4.0], "score": [0.9]})  # fmt: skip

    def example(self, call, name, annotation):
        """A valid argument."""
        w = self
        if str(annotation) in ("Any", "object", "T") or "None" in str(annotation):
            return None

        here = {
            ("data.filters.Filter.mask", "columns"): w.items.columns,
            ("data.interactions.Interactions.from_frame", "frame"): w.table,
            ("data.interactions.Interactions.from_labels", "labels"): ["a"] * 30,
            ("data.items.Items", "columns"): w.items.columns,
            ("data.recommendations.Recommendations", "users"): w.lists.users,
            ("data.recommendations.Recommendations", "positions"): w.lists.positions,
            ("data.recommendations.Recommendations", "scores"): w.lists.scores,
            ("evaluation.splits.by_group", "groups"): list(range(30)),
            ("experiments.problem.described", "texts"): {"red": "red thing"},
            ("experiments.problem.described", "column"): "title",
            ("experiments.item_splits.few_shot", "split"): w.problem.split,
            ("experiments.item_splits.group_codes", "groups"): ["a", "b"],
            ("experiments.item_splits.group_codes", "count"): 2,
            ("experiments.item_splits.split_items", "relations"): w.log,
            ("experiments.item_splits.split_items", "part"): ["train"] * 20 + ["valid"] * 5 + ["test"] * 5,
            ("evaluation.metrics.lists.average_popularity", "popularity"): np.arange(30),
            ("evaluation.metrics.lists.novelty", "popularity"): np.arange(1, 31),
            ("evaluation.metrics.classification.roc_auc", "scores"): [[0.2, 0.8], [0.4, 0.6]],
            ("evaluation.metrics.classification.calibration_error", "probabilities"): [[0.2, 0.8], [0.4, 0.6]],
            ("evaluation.metrics.ranking.popularity_bucket", "counts"): [0, 3, 9],
            ("data.items.Items.of_kind", "kind"): "text",
            ("io.readers.read_ids", "role"): "item",
            ("io.readers.read_ids", "source"): pd.DataFrame({"item": ["i1", "i2"]}),
            ("io.readers.read_items", "source"): pd.DataFrame({"item_id": ["i1", "i2"], "title": ["a", "b"]}),
            ("io.readers.read_interactions", "source"): w.table,
            ("io.readers.as_known", "ids"): ["i1"],
            ("recommenders.ranker.HybridRanker.setting", "name"): "dim",
            ("recommenders.base.Recommender.setting", "name"): "reg",
            ("recommenders.base.Recommender.label", "items"): w.vectors,
            ("recommenders.hybrid.HybridItems.with_trust", "trust"): (1.0, 1.0, 1.0),
            ("encoders.defaults.encoder_from_spec", "spec"): encoder_spec(HashingText()),
            ("encoders.defaults.stored_encoders", "specs"): [encoder_spec(HashingText())],
            ("encoders.text.SentenceText.spans", "pieces"): [("some words", 0, 4)],
            ("experiments.benchmark.variants.variants_of", "words"): ["Popularity"],
            ("transfer.labels.map_labels", "source"): w.problem.split.train,
            ("diagnostics.guard.guard", "valid"): w.split.valid,
            ("transfer.replay.Replay", "size"): 5,
            ("retrieval.choice.load_index", "prefix"): "index",
            ("transfer.static_distillation.DistilStatic.tune", "encoder"): SentenceText(model=w.folder / "missing"),
            ("task.TransferTask.load", "path"): w.saved,
            ("recommenders.base.Recommender.load", "path"): w.saved,
            ("evaluation.metrics.ranking.rank_metrics", "ks"): [5],
        }
        by_name = {
            "k": 3, "users": 20, "model": "EASE", "name": "one", "found": w.boxes, "truth": [True, False],
            "pictures": ["p"], "labels": ["a", "b"], "hit": [True, False], "truths": 1, "classes": 2, "prefix": "index",
        }  # fmt: skip
        by_type = {
            "Interactions": w.log, "Items": w.items, "Embeddings": w.vectors, "IdMap": w.vectors.ids, "Split": w.split,
            "Recommendations": w.lists, "Hits": w.hits,
            "Recommendations | Iterable[Recommendations]": w.lists,
            "Predictions": w.predictions, "TransferTask": w.task,
            "Recommender": w.model, "Encoder": HashingText(), "Sequence[Embeddings]": [w.vectors],
            "Sequence[Encoder]": [HashingText()], "Outcome": w.outcome, "Sequence[Outcome]": [w.outcome],
            "Problem": w.problem, "Metric": accuracy, "Mapping[str, Metric]": {"accuracy": accuracy},
            "NDArray[np.float32]": w.vectors.vectors[:5], "NDArray[np.int64]": np.arange(5) % 3, "Index": w.index,
            "NDArray[np.integer]": np.arange(3), "NDArray[Any]": np.arange(3), "NDArray[np.bool_]": np.eye(5) > 0,
            "Vectors": w.vectors.vectors, "ArrayLike": [0, 1], "Sequence[str]": ["some words"], "pd.DataFrame": w.boxes,
            "Sequence[Any]": ["some words"], "Mapping[str, Any]": {}, "str | Path": w.folder / "new", "str": "text",
            "Path": w.folder / "new", "int": 3, "float": 0.5, "bool": True, "Iterable[Any] | pd.Index": ["a", "b"],
            "Sequence[Variant]": [Variant("one", Popularity())], "ArrayLike | pd.Index": ["i1"], "Results": {},
            "tuple[tuple[Any, float], ...]": (("i1", 0.5),), "Mapping[str, float]": {"text": 1.0},
            "tuple[Shift, ...]": (), "Action": "nothing", "Difference": Difference(0.1, 0.0, 0.2, 0.5),
            "tuple[Bucket, ...]": (), "NDArray[np.integer[Any]] | NDArray[np.bool_]": np.arange(3),
            "Literal['helps', 'no difference', 'hurts']": "helps", "EncodeReport": w.report, "Artifact": w.artifact,
            "ArtifactWriter": ArtifactWriter(Path(tempfile.mkdtemp(dir=w.folder))),
            "Mapping[str, Sequence[float]]": {"price": [0.0, 1.0]},
            "Mapping[str, Mapping[str, float]]": {"colour": {"red": 1.0}},
            "Sequence[Mapping[str, Any]]": [{"price": 1.0}],
            "Mapping[str, Estimate]": w.outcome.metrics, "ReadReport": w.read.report, "Numbers": [0.2, 0.4],
            "pa.Schema": pa.schema([]), "Mapping[str, Augmenter]": {"title": TextNoise()},
            "Mapping[str, Tuner]": {}, "Sequence[Transfer]": [Whitening()],
            "TrainableEncoder": SentenceText(model=w.folder / "missing"), "Interactions | IdMap": w.vectors.ids,
            "SentenceText": SentenceText(model=w.folder / "missing"), "Pairs": Pairs(["a"], ["b"]), "NonNegativeInt": 1,
            "sparse.sparray | sparse.spmatrix | Numbers": np.eye(30), "int | Sequence[int] | NDArray[np.integer]": 30,
        }  # fmt: skip
        for table, key in ((here, (call, name)), (by_name, name), (by_type, str(annotation))):
            if key in table:
                return table[key]

        raise LookupError(f"{call} asks for {name}: {annotation}; give an example of it")

    def owner(self, kind):
        """A valid object whose methods are called."""
        made = {
            "Embeddings": self.vectors, "IdMap": self.vectors.ids, "Interactions": self.log, "Items": self.items,
            "Recommendations": self.lists, "TransferTask": self.task, "Recommender": self.model, "Fusion":
            Fusion().fit([self.vectors]), "ExactIndex": self.index, "Filter": Filter(allow=["i1"]),
            "Predictions": self.predictions, "Transfer": Whitening(),
            "Tuner": FineTune(folder=self.folder / "tuning"),
        }  # fmt: skip
        if kind.__name__ in made:
            return copy.copy(made[kind.__name__])

        needed = {name: parameter for name, parameter in inspect.signature(kind).parameters.items()
                  if parameter.default is parameter.empty}  # fmt: skip
        home = f"{kind.__module__.removeprefix('recotransfer.')}.{kind.__name__}"
        return kind(**{name: self.example(home, name, parameter.annotation) for name, parameter in needed.items()})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def called(world, call):
    """The function, or the method of a valid object."""
    kind = CALLS[call]
    last = call.rpartition(".")[2]
    if not inspect.isclass(kind) or last == kind.__name__:
        return kind
    if isinstance(inspect.getattr_static(kind, last), (classmethod, staticmethod)):
        return getattr(kind, last)

    return getattr(world.owner(kind), last)


def parameters(call):
    """The parameters of a call that name what they want."""
    kind, last = CALLS[call], call.rpartition(".")[2]
    function = kind if not inspect.isclass(kind) or last == kind.__name__ else getattr(kind, last)
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


@pytest.mark.parametrize("call", [call for call in CALLS if call not in STORED | NO_EXAMPLE and parameters(call)])
def test_an_argument_of_a_wrong_type_ends_in_one_sentence(world, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "x" is a folder, where a path is asked for
    if call.endswith("Benchmark.run"):  # its variants in this process, for one of their own takes seconds to start
        monkeypatch.setattr(runner, "run_each", lambda work, jobs, *_: [run_variant(work, *job) for job in jobs])
    wanted = parameters(call)
    valid = {
        name: world.example(call, name, parameter.annotation)
        for name, parameter in wanted.items()
        if parameter.default is parameter.empty
    }
    function = called(world, call)
    wrong = []
    for name in wanted:
        for said, odd in ODD.items():
            try:
                found = function(**{**valid, name: odd})
                list(found) if inspect.isgenerator(found) else None
            except RecoTransferError as error:
                if not str(error) or ("\n" in str(error) and not call.startswith("io.")):  # readers add their report
                    wrong.append(f"{name}={said}: not one sentence: {error}")
            except Exception as error:
                wrong.append(f"{name}={said}: {type(error).__name__}: {error}")

    assert not wrong, "\n".join(wrong)


REFUSED = {
    "k as text": (lambda w: w.task.recommend(["u1"], "10"), "k must be a whole number, got '10'"),
    "k as a float": (lambda w: w.task.recommend(["u1"], 2.0), "k must be a whole number, got 2.0"),
    "k as a truth value": (lambda w: w.task.recommend(["u1"], k=True), "k must be a whole number, got True"),
    "one user": (lambda w: w.task.recommend("u1"), r"put a single one in brackets: \['u1'\]"),
    "a filter as text": (lambda w: w.task.recommend(filter="price < 3"), "got 'price < 3'; make it with Filter"),
    "a table for items": (lambda w: w.task.fit(w.table, w.log), r"items must be an Items, got a DataFrame of shape"),
    "an element": (lambda w: HashingText().encode(["a", 3]), r"HashingText.encode: values\[1\] must be text, got 3"),
    "a choice": (lambda w: w.items.of_kind("texts"), "must be 'text', 'image', 'category' or 'number', got 'texts'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_the_sentence_names_argument_value_and_remedy(world, why):
    call, words = REFUSED[why]
    with pytest.raises(InputError, match=words):
        call(world)
