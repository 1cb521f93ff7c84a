#!/bin/sh
# Installs what the benchmarks compare with, each in a folder of its own: benchmarks/peers.sh [FOLDER]
set -eu
folder=${1:-.cache/peers}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"
"$python" -m pip install -q --target "$folder/openlit" openlit==1.45.0
"$python" -m pip install -q --target "$folder/ddtrace" ddtrace==4.16.0
"$python" -m pip install -q --no-deps --target "$folder/openllmetry" \
    opentelemetry-instrumentation-transformers==0.62.4 opentelemetry-semantic-conventions-ai
