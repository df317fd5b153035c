"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker per core: more threads would wait for each other. numba keeps its own, whose number some tests set.
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

REPO = Path(__file__).parents[1]


def blas_threads():
    """Threads of each BLAS that is loaded."""
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture(scope="session")
def shared_data():
    """Real data sets beside the repository; they have no licence to be part of it."""
    folder = Path(os.environ.get("RECOTRANSFER_SHARED", REPO.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not here; set RECOTRANSFER_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def shop():
    return REPO / "sample_data"
