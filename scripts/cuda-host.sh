#!/usr/bin/env bash
# Every line of kernels/cuda without a GPU: the tests on the host executor (tests/cudahost), in five orders of threads,
# blocks and streams; with the race detector; with ASan and UBSan; then the line coverage of kernels/cuda.
#
#     scripts/cuda-host.sh [FOLDER [quick]]     builds in FOLDER (build-cuda-*); quick: the kernels' tests in one order,
#                                               the program in two, the race detector on planted bugs, coverage
#
# The program is compared with the CPU build's, which is FOLDER/cnnscope, or build/cnnscope.
# Fails when a test does, or below 95 % of the lines. "skipped" (exit status 77) where NVIDIA's headers are not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
folder=${1:-.} target= # target: build only that one

for header in cuda_runtime.h nccl.h; do
    if ! cc -E -x c -I "${CUDA_HOME:-/usr/local/cuda}/include" -I .venv/cuda/include - <<<"#include <$header>" \
        >/dev/null 2>&1; then
        echo "skipped: no $header here (CUDA_HOME names another folder than /usr/local/cuda; setup.sh fetches it)"
        exit 77
    fi
done

# [target=ONLY] build NAME [cmake options]
build() {
    cmake -S . -B "$folder/build-cuda-$1" -DCMAKE_BUILD_TYPE=Release -DCUDA=HOST "${@:2}" >/dev/null
    cmake --build "$folder/build-cuda-$1" --parallel "$(nproc)" ${target:+--target "$target"} | tail -n 1
}

test_in() {
    ctest --test-dir "$folder/build-cuda-$1" --output-on-failure "${@:2}"
}

# build_counting NAME: with counters of lines, from zero.
build_counting() {
    build "$1" -DCMAKE_CXX_FLAGS=--coverage -DCMAKE_EXE_LINKER_FLAGS=--coverage
    find "$folder/build-cuda-$1" -name '*.gcda' -delete
}

# coverage NAME: what its tests ran; fails below 95 %.
coverage() {
    echo "lines of kernels/cuda that ran:"
    find "$folder/build-cuda-$1" -path '*kernels/cuda/*.gcda' -print0 |
        xargs -0 gcov --stdout --json-format 2>/dev/null |
        python3 -c '
import json, sys
ran = {}
for text in sys.stdin:
    for file in json.loads(text)["files"] if text.startswith("{") else []:
        if "kernels/cuda/" in file["file"]:
            lines = ran.setdefault(file["file"].split("/")[-1], {})
            for line in file["lines"]:
                number = line["line_number"]
                lines[number] = max(lines.get(number, 0), line["count"])
total = hit = 0
for name, lines in sorted(ran.items()):
    missed = [n for n, count in sorted(lines.items()) if count == 0]
    total, hit = total + len(lines), hit + len(lines) - len(missed)
    print(f"{name:18} {len(lines) - len(missed):4} of {len(lines):4}", *missed[:12])
print(f"all                {hit} of {total}: {100 * hit / max(total, 1):.1f} %")
sys.exit(not total or hit < 0.95 * total)'
}

for program in "$folder" build; do
    if [[ -x $program/cnnscope && -z ${CNNSCOPE_BIN:-} ]]; then
        CNNSCOPE_BIN=$(realpath "$program/cnnscope")
        export CNNSCOPE_BIN
    fi
done

if [[ ${2:-} == quick ]]; then
    build_counting quick
    CNNSCOPE_CUDA_SEEDS=2 test_in quick
    target=cudahost_selftest build races -DKERNELS_ONLY=ON -DCUDAHOST_RACES=ON
    test_in races -R selftest
    coverage quick
    exit
fi

export CNNSCOPE_CUDA_SEEDS=5
build_counting host
test_in host
for seed in 2 3 4 5; do
    CUDAHOST_SEED=$seed test_in host -R 'test_(ends|linalg|ops|graph)'
done
build races -DKERNELS_ONLY=ON -DCUDAHOST_RACES=ON
test_in races -E 'test_(kernels|graph)' # whose many batches take the detector too long
build asan -DKERNELS_ONLY=ON -DSANITIZE=ON
test_in asan -E test_kernels

coverage host
