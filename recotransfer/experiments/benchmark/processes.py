"""The processes that variants run in, and a description of the environment."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from recotransfer.errors import InputError
from recotransfer.experiments.benchmark.variants import Variant, guarded
from recotransfer.experiments.benchmark.work import Work, done, exit_reason, run_variant, write_failed
from recotransfer.progress import draw_in_this_process_only

PROCESS_NAME = "recotransfer variant"  # name of the processes that variants run in
SCRIPT_AGAIN = 97  # exit status of such a process if importing the script would start the benchmark again
_PACKAGES = ("recotransfer", "numpy", "scipy", "torch", "implicit", "faiss-cpu", "faiss-gpu", "numba", "optuna")


def check_script() -> None:
    """Raise `InputError` if the processes of the variants could not import the running script."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not Path(script).exists():
        raise InputError(
            f"every variant runs in its own process, which imports the script, but {script} is not a file; "
            "save the script and run it as python script.py"
        )


def run_each(work: Work, jobs: Sequence[tuple[Variant, ...]], workers: int, show: Callable[[], None]) -> None:
    """Run each job in its own process, at most `workers` at a time; a process that dies fails its variant only.

    Args:
        work: what all jobs share.
        jobs: arguments of `run_variant`: a variant, or a variant and its ablation.
        workers: number of processes at a time.
        show: called at least every two seconds to update the progress bar.
    """
    context = multiprocessing.get_context("spawn")  # OpenMP hangs after a fork
    waiting, running = list(jobs), dict[SpawnProcess, tuple[Variant, ...]]()

    try:
        while waiting or running:
            started = []
            while waiting and len(running) < workers:
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_work_alone, args=(receive,), name=PROCESS_NAME)
                process.start()
                receive.close()
                running[process] = waiting[0]
                started.append((send, waiting.pop(0)))

            # Sent only now, so that the processes import in parallel.
            for send, job in started:
                with send, contextlib.suppress(BrokenPipeError):  # a process that died is handled by its exit status
                    send.send((work, *job))

            connection.wait([process.sentinel for process in running], timeout=2)
            for process in [process for process in running if process.exitcode is not None]:
                _check_ended(work, running.pop(process), process.exitcode or 0)

            show()
    finally:
        for process in running:
            process.kill()
            process.join()


def _work_alone(receive: connection.Connection) -> None:
    """Main function of a variant's process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on an interrupt the parent kills its variants itself

    def exit_with_parent() -> None:
        parent.join()  # a killed parent cannot end this process; a resumed benchmark runs the variant again
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    draw_in_this_process_only()
    run_variant(*receive.recv())


def _check_ended(work: Work, job: tuple[Variant, ...], status: int) -> None:
    """Record the failure of a process that ended before it could write the error to its variant's folder."""
    if status == SCRIPT_AGAIN:
        raise InputError(
            "every variant runs in its own process, which imports the script and so would start the benchmark again; "
            'put the code of the script under if __name__ == "__main__":'
        )

    variant = job[0] if len(job) == 1 else guarded(job[0])
    if status and not done(work.folder(variant)):
        write_failed(work.folder(variant), variant, exit_reason(status))


def environment() -> dict[str, Any]:
    """Machine, versions, commit of the package's checkout, and command: the context of all results."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)

    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "--short", "HEAD")
    changed = " with uncommitted changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    return {
        "machine": f"{_cpu()}, {cores} cores",
        "python": platform.python_version(),
        "packages": packages,
        "commit": commit + changed if commit else None,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()

    return platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    """Output of a git command; empty if it fails, as outside a checkout."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return ""

    return done.stdout.strip()
