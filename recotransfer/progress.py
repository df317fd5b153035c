"""Progress bars on a terminal: tqdm's where it is installed, none elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, TypeVar

T = TypeVar("T")


class Bar(Protocol):
    """What the package uses of tqdm's bar."""

    n: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, n: float = 1) -> object:
        """Count `n` more as done."""

    def refresh(self) -> object:
        """Draw the bar anew, after `n` was set."""

    def set_postfix_str(self, s: str) -> object:
        """Write a remark behind the bar."""


class _NoBar:
    """Stands in for a bar where tqdm is not installed."""

    n: float = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, n: float = 1) -> None:
        pass

    def refresh(self) -> None:
        pass

    def set_postfix_str(self, s: str) -> None:
        pass


def progress_bar(total: int, *, desc: str, unit: str = "it", shown: bool = True, delay: float = 0) -> Bar:
    """A bar to be used in a `with` block; it draws on a terminal only.

    Args:
        total: the count at which all is done.
        desc: the words before the bar.
        unit: what is counted.
        shown: False draws nothing.
        delay: seconds to wait before the bar appears.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()

    bar: Bar = tqdm(total=total, desc=desc, unit=unit, disable=None if shown else True, delay=delay)
    return bar


def counted(values: Sequence[T], *, desc: str, unit: str = "it", shown: bool = True, delay: float = 0) -> Iterator[T]:
    """The values in order, under a bar that counts them; arguments as in `progress_bar`."""
    with progress_bar(len(values), desc=desc, unit=unit, shown=shown, delay=delay) as bar:
        for value in values:
            yield value
            bar.update()


def draw_in_this_process_only() -> None:
    """Give tqdm a lock of threads: its own has semaphores, and a process that is killed leaves warnings about them."""
    with suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())
