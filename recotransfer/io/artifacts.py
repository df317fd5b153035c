"""Artefacts: folders of checksummed files, replaced in one step and loaded without executing code.

`manifest.json` holds {"format": 1, "class": ..., "package": ..., "parts": {file: {"sha256": ..., "bytes": ...}}}. The
parts are `NAME.npy` (memory-mapped on load), `NAME.json`, `NAME.parquet` and folders `NAME/` of encoder models. Nothing
is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.lib import format as npy
from numpy.typing import NDArray
from pyarrow import parquet
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.errors import ArtifactError, InputError
from recotransfer.io.folders import OpenFolder, replace_folder, sync_folder
from recotransfer.io.values import frame_to_ids, from_table, ids_to_frame, to_table

FORMAT = 1
_MANIFEST = "manifest.json"
# Suffixes of text and tensor files, which cannot execute code when a model is loaded.
MODEL_FILES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".md"}


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing, which appears at `path` complete and flushed to disk, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    # In the same folder, because a rename is atomic only within a file system.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)

    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

        os.chmod(name, 0o666 & ~_umask())  # as `open` would; mkstemp lets only the owner read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The permissions that new files must not have; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Make an empty folder to write into, which replaces `path` once it is complete and flushed to disk.

    On error the new folder is deleted and `path` is unchanged. On success an existing folder at `path` is deleted, so
    first check that it holds nothing worth keeping (`check_replaceable`).
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays, and the folder it points to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))

    try:
        yield folder
        for inner in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            sync_folder(inner)

        for part in _files(folder):
            with part.open("rb") as file:
                os.fsync(file.fileno())

        os.chmod(folder, 0o777 & ~_umask())
        replace_folder(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically; equal values give identical bytes."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote; raises `InputError` if the file is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        value = None

    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged; give another folder, or delete this one and start again")

    return value


def digest_of_events(events: Interactions) -> str:
    """SHA-256 fingerprint of a log's ids and events, as hexadecimal text."""
    arrays = (events.users.ids, events.items.ids, events.user, events.item, events.weight, events.time)
    return digest(*(a for a in arrays if a is not None))


def digest(*arrays: object) -> str:
    """SHA-256 fingerprint of arrays of any type, as hexadecimal text; 1 and "1" differ."""
    out = hashlib.sha256()
    for array in map(np.asarray, arrays):
        out.update(f"{len(array)}{array.dtype.kind}\0".encode())
        if array.dtype.kind in "iufb":
            out.update(np.ascontiguousarray(array).tobytes())
        else:
            for value in array.tolist():
                out.update(f"{type(value).__name__}:{value!r}\0".encode("utf-8", "surrogatepass"))

    return out.hexdigest()


class ArtifactWriter:
    """Writes the parts of one artefact; `write_artifact` passes it to the function that fills the folder."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.prefix = prefix

    def within(self, name: str) -> ArtifactWriter:
        """A writer to the same folder that puts `name.` before the names of its parts, for a model within a model."""
        return ArtifactWriter(self.folder, f"{self.prefix}{name}.")

    def _path(self, file: str) -> Path:
        path = self.folder / (self.prefix + file)
        if path.exists():
            raise ValueError(f"part {path.name} is written twice")

        return path

    def array(self, name: str, values: NDArray[Any]) -> None:
        """Write a numeric or boolean array of any shape."""
        if values.dtype == object:
            raise TypeError(f"array {name} has dtype object; store ids with .ids and tables with .table")

        np.save(self._path(f"{name}.npy"), np.ascontiguousarray(values), allow_pickle=False)

    def matrix(self, name: str, values: sparse.csr_array | NDArray[Any]) -> None:
        """Write a sparse matrix as its three CSR arrays and its shape, or a dense one as one array."""
        if isinstance(values, np.ndarray):
            self.array(name, values)
            return

        self.array(f"{name}.data", values.data)
        self.array(f"{name}.indices", values.indices)
        self.array(f"{name}.indptr", values.indptr)
        self.array(f"{name}.shape", np.asarray(values.shape, np.int64))

    def json(self, name: str, value: object) -> None:
        """Write a value of dicts, lists, text, numbers, bools and None as JSON."""
        self._path(f"{name}.json").write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Write a frame as Parquet; every cell keeps its type, the index is lost."""
        parquet.write_table(to_table(frame), self._path(f"{name}.parquet"))

    def ids(self, name: str, ids: NDArray[Any]) -> None:
        """Write ids of any supported type; each keeps its type."""
        self.table(name, ids_to_frame(ids))

    def folder_of_model(self, name: str, path: str | Path, files: Sequence[Path] | None = None) -> None:
        """Copy an encoder model's folder, which keeps its own name inside the part.

        Args:
            name: name of the part.
            path: the folder.
            files: the files to copy; None copies all.

        Raises:
            InputError: a file is neither text nor safetensors; other formats can execute code when they are loaded.
        """
        source = Path(path)
        files = _files(source) if files is None else files
        if bad := next((f for f in files if f.suffix not in MODEL_FILES), None):
            raise InputError(f"{bad} is neither text nor safetensors, so it cannot be saved with a model; remove it")

        for file in files:
            target = self._path(f"{name}/{source.absolute().name}/{file.relative_to(source).as_posix()}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


class _OpenFiles:
    """The open files of an artefact, which stay readable and unchanged if another save replaces the folder.

    They are closed when the object is garbage-collected.
    """

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)

    def add(self, name: str, descriptor: int) -> None:
        self._descriptors[name] = descriptor

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        """The file, positioned at its start."""
        with open(self._descriptors[name], "rb", closefd=False) as file:
            file.seek(0)
            yield file

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)

    descriptors.clear()


class Artifact:
    """An open artefact: all files come from the same save, and each part is decoded when it is read.

    Reads move shared file positions, so use an `Artifact` from one thread only.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], files: _OpenFiles, prefix: str = "") -> None:
        self.folder = folder
        self.manifest = manifest
        self.prefix = prefix
        self._files = files

    def within(self, name: str) -> Artifact:
        """The parts whose names begin with `name.`, which `ArtifactWriter.within` wrote."""
        return Artifact(self.folder, self.manifest, self._files, f"{self.prefix}{name}.")

    @property
    def class_name(self) -> str:
        """Name of the class that wrote the artefact."""
        return str(self.manifest["class"])

    def check_class(self, expected: type) -> None:
        """Raise `ArtifactError` if another class than `expected` wrote the artefact."""
        if (name := self.class_name) != expected.__name__:
            raise ArtifactError(f"{self.folder} was saved by {name}, not {expected.__name__}; load it with {name}.load")

    def _name_of(self, file: str) -> str:
        if file not in self:
            raise ArtifactError(f"{self.folder}: part {self.prefix}{file} is not in {_MANIFEST}; save the model again")

        return self.prefix + file

    def __contains__(self, file: str) -> bool:
        return self.prefix + file in self.manifest["parts"]

    def array(self, name: str) -> NDArray[Any]:
        """Read an array, memory-mapped and read-only."""
        with self._files.open(self._name_of(f"{name}.npy")) as file:
            return _mapped(file)

    def matrix(self, name: str) -> sparse.csr_array | NDArray[Any]:
        """Read a matrix, sparse or dense as it was written, without copying its memory-mapped arrays."""
        if f"{name}.npy" in self:
            return self.array(name)

        rows, columns = (int(n) for n in self.array(f"{name}.shape"))
        arrays = (self.array(f"{name}.data"), self.array(f"{name}.indices"), self.array(f"{name}.indptr"))
        return sparse.csr_array(arrays, shape=(rows, columns), copy=False)

    def json(self, name: str) -> Any:
        """Read a JSON value."""
        return json.loads(self._files.read(self._name_of(f"{name}.json")))

    def table(self, name: str) -> pd.DataFrame:
        """Read a frame, every cell in its original type."""
        return from_table(parquet.read_table(BytesIO(self._files.read(self._name_of(f"{name}.parquet")))))

    def ids(self, name: str) -> NDArray[Any]:
        """Read ids, each in its original type."""
        return frame_to_ids(self.table(name))

    def has_folder(self, name: str) -> bool:
        """Whether `ArtifactWriter.folder_of_model` wrote a folder of this name."""
        return any(part.startswith(f"{self.prefix}{name}/") for part in self.manifest["parts"])

    def digests_of_model(self, name: str) -> dict[str, str]:
        """Path in the model's folder -> SHA-256 digest, for each file that `ArtifactWriter.folder_of_model` wrote."""
        start = f"{self.prefix}{name}/"
        stored = {part.removeprefix(start): fact["sha256"] for part, fact in self.manifest["parts"].items()
                  if part.startswith(start)}  # fmt: skip
        folders = {path.partition("/")[0] for path in stored}
        if len(folders) != 1:
            raise ArtifactError(
                f"{self.folder}: {start} changed after it was saved; restore it or save the model again"
            )
        if bad := next((path for path in stored if Path(path).suffix not in MODEL_FILES), None):
            raise ArtifactError(f"{self.folder / start / bad} is neither text nor safetensors; save the model again")

        return {path.partition("/")[2]: digest for path, digest in stored.items()}

    def folder_of_model(self, name: str) -> Path:
        """Path of a folder that `ArtifactWriter.folder_of_model` wrote, though another save may have replaced it since.

        Raises:
            ArtifactError: the folder holds files that are missing from the manifest, or of types that are not allowed.
        """
        start = f"{self.prefix}{name}/"
        self.digests_of_model(name)  # raises if the manifest lists files of other types
        first = next(part for part in self.manifest["parts"] if part.startswith(start))
        folder = Path(self.folder, start, first.removeprefix(start).partition("/")[0])
        listed = {self.folder / part for part in self.manifest["parts"]}
        extra = [file for file in _files(folder) if file not in listed]
        if extra and _manifest_of(self.folder) == self.manifest:  # else another save has just replaced the folder
            raise ArtifactError(f"{extra[0]} was not saved with the model; remove it or save the model again")

        return folder

    @contextlib.contextmanager
    def copy_of_model(self, name: str) -> Iterator[Path]:
        """Make a temporary copy of a model's folder from the open files, which a concurrent save cannot change."""
        with tempfile.TemporaryDirectory() as copy:
            folder = self.folder_of_model(name)
            for path in self.digests_of_model(name):
                target = Path(copy, folder.name, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                part = f"{self.prefix}{name}/{folder.name}/{path}"
                target.write_bytes(self._files.read(part))

            yield Path(copy, folder.name)


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    """The folder's current manifest; None if it cannot be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

    return manifest


def _mapped(file: BufferedReader) -> NDArray[Any]:
    """Memory-map the array of an open `.npy` file; numpy's own `load` maps files by path, which may be replaced."""
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("arrays of Python objects are not loaded, because unpickling them could execute code")

    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def check_replaceable(path: Path) -> None:
    """Raise `InputError` if writing an artefact to `path` would fail, or delete files that belong to no artefact."""
    if not path.exists():
        parent = next(p for p in path.absolute().parents if p.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise InputError(f"cannot create {path}: {parent} is not a writable folder; give another path")
    elif Path.cwd().is_relative_to(path.resolve()):
        raise InputError(f"{path} is the working folder or contains it; give a new folder")
    elif not path.is_dir():
        raise InputError(f"{path} is a file; give a new folder, or that of an earlier model")
    else:
        with OpenFolder(path) as folder:
            if names := set(folder.names()):
                _check_is_artifact(folder, names)


def _check_is_artifact(folder: OpenFolder, names: set[str]) -> None:
    """Raise `InputError` unless `names`, the folder's content, are a manifest and the parts that it lists."""
    try:
        with open(folder.open(_MANIFEST), "rb") as file:
            parts = set(json.load(file)["parts"])
    except (OSError, ValueError, LookupError, TypeError):
        if folder.replaced():
            return  # by a concurrent save, so the folder is an artefact now

        raise InputError(f"{folder.path} holds other files; give a new folder, or that of an earlier model") from None

    if extra := sorted(names - {_MANIFEST} - {part.split("/")[0] for part in parts}):
        raise InputError(f"{folder.path} holds {extra[0]!r} beside a model, which would be lost; move it elsewhere")


def write_artifact(path: str | Path, class_name: str, fill: Callable[[ArtifactWriter], None]) -> None:
    """Write an artefact and move it to `path` in one step.

    An existing artefact at `path` is replaced, and stays readable for those who have it open.

    Args:
        path: the folder.
        class_name: the class that is saved; loading checks it.
        fill: writes the parts.

    Raises:
        InputError: `path` cannot be written to, or holds anything but an artefact (`check_replaceable`).
    """
    from recotransfer._version import __version__

    path = Path(path)
    check_replaceable(path)

    with atomic_folder(path) as folder:
        fill(ArtifactWriter(folder))
        parts = {
            p.relative_to(folder).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in _files(folder)
        }
        manifest = {"format": FORMAT, "class": class_name, "package": __version__, "parts": parts}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def open_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """Open the artefact at `path`; all files are of one save, even while other processes save to the same path.

    Args:
        path: the folder.
        verify: check every file's checksum, which reads all bytes. False checks only the file sizes, for folders that
            were verified before.

    Raises:
        ArtifactError: `path` is not an artefact, has another format, or contains a damaged file, which is named.
    """
    path = Path(path)
    while True:
        try:
            with OpenFolder(path) as folder:
                try:
                    return _open(folder, verify)
                except ArtifactError:
                    if not folder.replaced():
                        raise
        except (FileNotFoundError, NotADirectoryError):
            if not path.is_dir():  # else a concurrent save is replacing it: try again
                raise ArtifactError(f"{path} holds no {_MANIFEST}; give the folder that `save` wrote") from None


def _open(folder: OpenFolder, verify: bool) -> Artifact:
    where = folder.path
    try:
        with open(folder.open(_MANIFEST), "rb") as file:
            manifest = json.load(file)

        if (version := manifest["format"]) != FORMAT:
            raise ArtifactError(
                f"{where} has format {version}, this version reads {FORMAT}; install the version that wrote it"
            )

        parts = [(name, part["bytes"], part["sha256"]) for name, part in manifest["parts"].items()]
        _ = manifest["class"]  # a manifest without it is damaged
    except FileNotFoundError:
        raise ArtifactError(f"{where} holds no {_MANIFEST}; give the folder that `save` wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise ArtifactError(f"{where / _MANIFEST} is damaged ({cause}); save the model again") from None

    files = _OpenFiles()
    for name, size, digest in parts:
        try:
            # An edited manifest must not make us read files outside the folder.
            if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\\" in name:
                raise FileNotFoundError(name)

            files.add(name, folder.open(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ArtifactError(
                f"{where}: part {name} is missing; restore the folder or save the model again"
            ) from None

        with files.open(name) as file:
            intact = os.fstat(file.fileno()).st_size == size
            if not intact or (verify and hashlib.file_digest(file, "sha256").hexdigest() != digest):
                raise ArtifactError(f"{where}: part {name} was truncated or edited; restore it or save the model again")

    return Artifact(where, manifest, files)
