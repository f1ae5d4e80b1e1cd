#!/usr/bin/env bash
# The rows that want a GPU, ours alone, in about twelve minutes on one of 24 GB or more:
#
#     bash benchmarks/gpu.sh [FOLDER]        results/benchmarks by default, to whose files it adds
#     SMOKE=1 bash benchmarks/gpu.sh /tmp    the same script on any machine, with the tiny model
#
# Learning at 0.5B in bfloat16 with the memory that it takes, and decoding against the memory's bandwidth.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/benchmarks}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
if [[ -n "${SMOKE:-}" ]]; then
    "$python" -m benchmarks.train_step --dtype bfloat16 --turns 1 --rows tiny-1x8-16+12 >> "$out/train_step.jsonl"
    "$python" -m benchmarks.decode --smoke >> "$out/decode.jsonl"
    exit
fi
"$python" -m benchmarks.train_step --dtype bfloat16 --turns 3 \
    --rows 0.5b-4x8-512+512,0.5b-1x8-512+512,0.5b-2x8-1024+1024 >> "$out/train_step.jsonl"
"$python" -m benchmarks.decode --device gpu --turns 2 --rows 0.5b-1x8-64,0.5b-8x8-64,0.5b-32x8-512 >> "$out/decode.jsonl"
