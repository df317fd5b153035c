#!/usr/bin/env bash
# Saves models with everything installed, then loads them in an environment of a plain install. Arguments: the python of
# the environment that has everything, and the one to make environments with.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$1" tests/bare.py write "$place"
"$2" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt .
(cd "$place" && env -u PYTHONPATH venv/bin/python "$OLDPWD/tests/bare.py" read "$place")
