"""Replace a folder while others read it: whoever opens it finds the old one or the new one, whole.

On Linux two folders exchange their names in one step. Where the file system cannot do that, the old folder waits under
a hidden name between two renames; `OpenFolder` looks there too, so that a crash between them loses nothing.
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

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD: paths are relative to the working folder
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM}
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe must not block
_BY_DESCRIPTOR = os.open in os.supports_dir_fd


class OpenFolder:
    """A folder opened for reading, which stays the same folder when another one takes its name.

    Attributes:
        path: where it was found: under its name, or waiting under the hidden one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = path
        self._descriptor = -1
        if _BY_DESCRIPTOR:
            try:
                self._descriptor = os.open(path, _READ | os.O_DIRECTORY)
            except FileNotFoundError:
                self.path = _waiting(path)
                self._descriptor = os.open(self.path, _READ | os.O_DIRECTORY)
        elif not path.exists():
            self.path = _waiting(path)

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def names(self) -> list[str]:
        """Names of the files and folders directly within."""
        return os.listdir(self._descriptor if self._descriptor >= 0 else self.path)

    def open(self, name: str) -> int:
        """File descriptor of the regular file `name`, a path with slashes.

        Raises:
            FileNotFoundError: there is no such file; see `replaced` for whether there was one a moment ago.
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
        """True once another folder has taken this one's name."""
        if self._descriptor < 0:
            return False

        for path in (self._asked, self.path):  # a waiting folder is being removed once another has the name
            with contextlib.suppress(FileNotFoundError):
                return not os.path.samestat(os.stat(path), os.fstat(self._descriptor))

        return True


def replace_folder(new: Path, path: Path) -> None:
    """Give the folder `new` the name `path`, in the same parent folder, and remove the folder that had it."""
    while True:
        if not path.exists() and not _waiting(path).exists():
            try:
                os.rename(new, path)
                break
            except OSError as cause:
                if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise  # else another process was quicker, and its folder is to be replaced
        elif path.exists() and exchange(new, path):
            shutil.rmtree(new, ignore_errors=True)
            break
        else:
            _rename_twice(new, path)
            break

    sync_folder(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False where this system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False

    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True

    code = ctypes.get_errno()
    if code in _CANNOT or code == errno.ENOENT:  # the other is gone: another process is at work on it
        return False

    raise OSError(code, os.strerror(code), str(other))


def _rename_twice(new: Path, path: Path) -> None:
    """`replace_folder` where names cannot be exchanged."""
    waiting = _waiting(path)
    with _alone_in(path.parent):
        if path.exists():
            shutil.rmtree(waiting, ignore_errors=True)  # left by a crash after the second rename
            os.rename(path, waiting)

        try:
            os.rename(new, path)
        except BaseException:
            os.rename(waiting, path)
            raise

        shutil.rmtree(waiting, ignore_errors=True)


def _waiting(path: Path) -> Path:
    """Where the old folder waits while the new one takes its name."""
    return path.with_name(f".{path.name}.replaced")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One writer at a time, where the file system has locks."""
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
    """Flush a folder's list of names to disk, where the system allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
