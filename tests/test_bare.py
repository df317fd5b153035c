"""Without the packages of `cpu` and `gpu` saved models load and recommend; `make test-bare` does it in such a place."""

import subprocess
import sys

import bare
from conftest import REPO

BLOCKED = """
import sys
from recotransfer.errors import EXTRAS

ABSENT = {"tqdm", *(package for packages in EXTRAS.values() for package in packages.split())}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import bare
from pathlib import Path
bare.read(Path(sys.argv[2]))
assert not ABSENT & {name.partition(".")[0] for name in sys.modules}
"""


def test_saved_models_recommend_where_no_extra_is_installed(tmp_path):
    bare.write(tmp_path, ["hybrid", "ranker", "ridge", "als", bare.NEEDS_TORCH])
    command = [sys.executable, "-c", BLOCKED, REPO / "tests", tmp_path]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
