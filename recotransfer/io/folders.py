"""Replace a folder atomically: readers get either the old folder or the new one, complete.

On Linux the two folders swap names in one step. Where the file system cannot do that, the old folder is set aside under
a hidden name between two renames; `OpenFolder` looks there too, so a crash between the renames loses nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_RENAME_EXCHANGE = 2  # flag of renameat2(2): swap the two names
_AT_FDCWD = -100  # paths are relative to the working folder
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM}
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe must not block
_HAS_DIR_FD = os.open in os.supports_dir_fd  # False on Windows


class OpenFolder:
    """A folder open for reading; it remains readable after another folder has taken its name.

    Attributes:
        path: where the folder was found: at the path asked for, or set aside under the hidden name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._requested = path
        self._descriptor = -1  # stays -1 where folders cannot be opened, and files are opened by path

        if _HAS_DIR_FD:
            try:
                self._descriptor = os.open(path, _READ | os.O_DIRECTORY)
            except FileNotFoundError:  # a writer is between its two renames, or crashed there
                self.path = _aside(path)
                self._descriptor = os.open(self.path, _READ | os.O_DIRECTORY)
        elif not path.exists():
            self.path = _aside(path)

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def names(self) -> list[str]:
        """Names of the files and folders directly inside."""
        return os.listdir(self._descriptor if self._descriptor >= 0 else self.path)

    def open(self, name: str) -> int:
        """Open the regular file `name` (a relative path with slashes); the caller closes the returned descriptor.

        Raises:
            FileNotFoundError: there is no such file; a concurrent writer may be deleting the folder, see `replaced`.
        """
        if self._descriptor >= 0:
            file = os.open(name, _READ, dir_fd=self._descriptor)
        else:
            file = os.open(self.path / name, _READ)

        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise FileNotFoundError(errno.ENOENT, "not a regular file", name)

        return file

    def replaced(self) -> bool:
        """Whether another folder has taken this one's name; always False where folders cannot be opened."""
        if self._descriptor < 0:
            return False

        for path in (self._requested, self.path):  # a folder set aside is deleted once another has the name
            with contextlib.suppress(FileNotFoundError):
                return not os.path.samestat(os.stat(path), os.fstat(self._descriptor))

        return True


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`, in the same parent folder, and delete the folder that was there."""
    while True:
        if not path.exists() and not _aside(path).exists():
            try:
                os.rename(new, path)
                break
            except OSError as cause:
                if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

                # Another process was faster: go round again to replace its folder.
        elif path.exists() and exchange(new, path):
            shutil.rmtree(new, ignore_errors=True)
            break
        else:
            _rename_twice(new, path)
            break

    sync_folder(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False where the system or the file system does not support it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False

    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True

    code = ctypes.get_errno()
    if code in _UNSUPPORTED or code == errno.ENOENT:  # ENOENT: another process has just moved the other folder
        return False

    raise OSError(code, os.strerror(code), str(other))


def _rename_twice(new: Path, path: Path) -> None:
    """`replace_folder` for file systems that cannot swap names."""
    aside = _aside(path)
    with _locked(path.parent):
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)  # left by a crash after the second rename
            os.rename(path, aside)

        try:
            os.rename(new, path)
        except BaseException:
            os.rename(aside, path)
            raise

        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Hidden name under which the old folder is set aside until the new one has its name."""
    return path.with_name(f".{path.name}.replaced")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let only one writer at a time work in the folder, where the system and the file system have locks."""
    descriptor = -1
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to disk, where the system allows it, so that renames survive a power cut."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
