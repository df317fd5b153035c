"""Progress bars on a terminal, drawn by tqdm; there are none if it is not installed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, TypeVar

T = TypeVar("T")


class Bar(Protocol):
    """The part of tqdm's bar that the package uses."""

    n: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, n: float = 1) -> object:
        """Count `n` more as done."""

    def refresh(self) -> object:
        """Redraw the bar after `n` was set."""

    def set_postfix_str(self, s: str) -> object:
        """Show a remark after the bar."""


class _NoBar:
    """Replaces the bar if tqdm is not installed."""

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
    """A progress bar for a `with` block, drawn on a terminal only.

    Args:
        total: the count when all is done.
        desc: text in front of the bar.
        unit: what is counted.
        shown: False hides the bar.
        delay: seconds to wait before the bar appears.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()

    bar: Bar = tqdm(total=total, desc=desc, unit=unit, disable=None if shown else True, delay=delay)
    return bar


def counted(values: Sequence[T], *, desc: str, unit: str = "it", shown: bool = True, delay: float = 0) -> Iterator[T]:
    """The values in order, with a progress bar that counts them; arguments as in `progress_bar`."""
    with progress_bar(len(values), desc=desc, unit=unit, shown=shown, delay=delay) as bar:
        for value in values:
            yield value
            bar.update()


def draw_in_this_process_only() -> None:
    """Give tqdm a thread lock: its own uses semaphores, and a process that is killed leaves warnings about them."""
    with suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())
