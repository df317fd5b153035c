"""Progress of long jobs: a bar on a terminal, drawn by tqdm; a line now and then elsewhere, such as in a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, TypeVar

T = TypeVar("T")

_SECONDS = 5.0  # least time between two lines
_SHARE = 0.05  # the same as a share of the time so far, so that a job of hours writes some hundred lines


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
    """Replaces the bar if none is to be shown."""

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


class _Lines:
    """Replaces the bar if stderr is no terminal: a line every few seconds, and a last one if there were any."""

    def __init__(self, total: int, desc: str, delay: float) -> None:
        self.n: float = 0
        self._total = total
        self._desc = desc
        self._remark = ""
        self._start = time.monotonic()
        self._due = self._start + max(delay, _SECONDS)
        self._last: float | None = None  # `n` in the last line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None and self._last != self.n:
            self._write()

    def update(self, n: float = 1) -> None:
        self.n += n
        self.refresh()

    def refresh(self) -> None:
        if time.monotonic() >= self._due:
            self._write()

    def set_postfix_str(self, s: str) -> None:
        self._remark = s

    def _write(self) -> None:
        now = time.monotonic()
        spent = now - self._start
        self._due = now + max(_SECONDS, _SHARE * spent)
        self._last = self.n
        remark = f", {self._remark}" if self._remark else ""
        print(
            f"{self._desc}: {self.n:,.0f} of {self._total:,} after {spent:.0f} s{remark}", file=sys.stderr, flush=True
        )


def progress_bar(total: int, *, desc: str, unit: str = "it", shown: bool = True, delay: float = 0) -> Bar:
    """A progress bar for a `with` block; lines of text if stderr is no terminal, or tqdm is not installed.

    Args:
        total: the count when all is done.
        desc: text in front of the bar.
        unit: what is counted.
        shown: False hides the bar.
        delay: seconds to wait before the bar appears.
    """
    if not shown or sys.stderr is None:
        return _NoBar()
    if not sys.stderr.isatty():
        return _Lines(total, desc, delay)

    try:
        from tqdm import tqdm
    except ImportError:
        return _Lines(total, desc, delay)

    bar: Bar = tqdm(total=total, desc=desc, unit=unit, delay=delay)
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
