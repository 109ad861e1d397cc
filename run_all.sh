#!/usr/bin/env bash
# The one entry: makes or reuses the environment, then hands over to `python -m lib`.
# ./run_all.sh --help lists the flags; ./run_all.sh --test runs the test suite.
set -euo pipefail

file=${BASH_SOURCE[0]}
while [ -L "$file" ]; do # called by a link: the project is where the file itself lies
  link=$(readlink "$file")
  case $link in /*) file=$link ;; *) file=$(dirname "$file")/$link ;; esac
done
project=$(CDPATH='' cd -- "$(dirname -- "$file")" && pwd -P)

complete() { # whether all of the requirements.txt of now is installed in .venv
  [ -x .venv/bin/python ] && [ "$(cat .venv/.requirements.txt 2>/dev/null)" = "$(cat requirements.txt)" ]
}

make_environment() {
  local base="" candidate
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
  echo "making .venv from requirements.txt, or waiting for another call that does (once; a few minutes) ..." >&2
  # One call at a time. The lock goes with the last process that has it open, however that ends.
  exec 9>.venv.lock
  flock 9 2>/dev/null || "$base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null ||
    echo "nothing can be locked in $project: until .venv is there, let no second call begin" >&2
  if ! complete; then
    "$base" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
    # Notebooks opened in Jupyter import `lib` from beside their .venv, also in a copied project.
    .venv/bin/python -c 'import os, pathlib, site; here = site.getsitepackages()[0]; pathlib.Path(here, "model_editing_study.pth").write_text(os.path.relpath(".", here))'
    cp requirements.txt .venv/.requirements.txt # the last step: an interrupted one is made again
  fi
  exec 9>&-
}

if [ "${CONDA_DEFAULT_ENV:-}" = "model-editing-study" ]; then
  python=python
else
  python=$project/.venv/bin/python
  caller=$PWD
  cd "$project"
  complete || make_environment
  cd "$caller"
fi

if [ "${1:-}" = "--test" ]; then
  shift
  cd "$project"
  # Two workers that take file after file; --test -n 0 runs everything in one process.
  exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
fi
# Paths are relative to the caller's folder; modules come from the project, never from that folder.
export PYTHONSAFEPATH=1 PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m lib "$@"
