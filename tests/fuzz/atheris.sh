#!/bin/sh
# Installs atheris, the fuzzer, into a folder of its own: tests/fuzz/atheris.sh [FOLDER]. A second run does nothing.
set -eu
folder=${1:-.cache/atheris}
python=${PYTHON:-.venv/bin/python}

PYTHONPATH=$folder "$python" -c 'import atheris' 2>/dev/null && exit 0
rm -rf "$folder"
# Without a wheel it would be compiled, which takes a clang with libFuzzer.
"$python" -m pip install -q --disable-pip-version-check --only-binary :all: --target "$folder" 'atheris>=2.3' || {
    echo "$0: atheris does not install for $("$python" --version): it has wheels for CPython 3.10 to 3.14 on x86-64" \
        "Linux alone. Another Python: make fuzz VENV=.venv-fuzz PYTHON=python3.11" >&2
    exit 1
}
