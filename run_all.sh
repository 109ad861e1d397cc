#!/usr/bin/env bash
# The one entry: makes or reuses the environment, then hands over to `python -m lib`.
# ./run_all.sh --help lists the flags; ./run_all.sh --test runs the test suite.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ "${CONDA_DEFAULT_ENV:-}" = "model-editing-study" ]; then
  python=python
else
  python=.venv/bin/python
  stamp=.venv/.requirements.sha256
  wanted=$(sha256sum requirements.txt | cut -d' ' -f1)
  if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    base=""
    for candidate in python3.11 python3.12 python3; do
      if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
        base=$candidate
        break
      fi
    done
    if [ -z "$base" ]; then
      echo "run_all.sh needs Python 3.11 or 3.12; install one, or: conda env create -f environment.yml && conda activate model-editing-study" >&2
      exit 1
    fi
    echo "making .venv from requirements.txt (once; a few minutes) ..." >&2
    "$base" -m venv --clear .venv
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
    # notebooks opened in Jupyter import `lib` from anywhere
    "$python" -c 'import pathlib, site; pathlib.Path(site.getsitepackages()[0], "model_editing_study.pth").write_text(str(pathlib.Path.cwd()))'
    echo "$wanted" > "$stamp"
  fi
fi

if [ "${1:-}" = "--test" ]; then
  shift
  # Two workers that take file after file; --test -n 0 runs everything in one process.
  exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
fi
exec "$python" -m lib "$@"
