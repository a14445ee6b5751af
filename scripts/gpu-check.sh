#!/usr/bin/env bash
# For whoever has NVIDIA GPUs: build for them, run the tests on them and under compute-sanitizer, compare the program with
# the CPU build's, and measure.
#
#     scripts/gpu-check.sh [ARCHITECTURE]      default: native, what CMake finds in this machine
#     scripts/gpu-check.sh HOST                the script itself: the same steps on the host executor, few of each kind, no GPU
#
# The kernels' tests and the benchmark need CUDA 12 or 13, OpenBLAS, cmocka, pkg-config. The rest is left out, and said so,
# where something is not there: MPI, netCDF and NCCL (collectives, the program), .venv and build/cnnscope of setup.sh (the
# comparison), compute-sanitizer, PyTorch and torchvision (TORCH_PYTHON: a Python that has them; default python3).
# All is in gpu-check.csv: what, size, unit, value, fraction of the bound (bench_device.c); of a test: its result, seconds.
# This script has been run with HOST only, not on a GPU yet: what it finds first may be itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
csv=gpu-check.csv
failed=0

# record WHAT COMMAND...: runs it, prints and writes one line of the CSV.
record() {
    local what=$1 start=$SECONDS result=passed
    shift
    "$@" || result=failed
    [[ $result == passed ]] || failed=1
    echo "$what,,$result,$((SECONDS - start))," | tee -a "$csv"
}

left_out() {
    echo "$1,,left out: $2,," | tee -a "$csv"
}

if [[ ${1:-} == HOST ]]; then
    cuda=(-DCUDA=HOST)
    gpus=2 tests=(ends linalg) watched=(ends) small=(--small) chosen=(-k "pca or shared")
else
    if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L | grep -q GPU; then
        echo "gpu-check.sh: no GPU is visible (nvidia-smi -L), one is needed: run me on a GPU node" >&2
        exit 1
    fi
    nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv
    cuda=(-DCUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${1:-native}")
    gpus=$(nvidia-smi -L | wc -l) tests=(ends linalg ops graph tsne kernels) watched=(ends linalg tsne) small=() chosen=()
fi
echo "what,size,unit,value,fraction of the bound" >"$csv"

# ---- The kernels: no MPI, no netCDF ---------------------------------------------------------------------------------
cmake -S . -B build-gpu "${cuda[@]}" -DKERNELS_ONLY=ON >/dev/null
cmake --build build-gpu --parallel "$(nproc)" | tail -n 1
for test in "${tests[@]}"; do
    record "test_$test" "build-gpu/test_$test"
done
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        for test in "${watched[@]}"; do
            record "$tool test_$test" compute-sanitizer --tool "$tool" --error-exitcode 9 "build-gpu/test_$test"
        done
    done
else
    left_out "compute-sanitizer's four tools" "not here"
fi
# shellcheck disable=SC2016 # for that shell to expand
record "measuring" sh -c 'build-gpu/bench_device "$@" >build-gpu/rates.csv' sh "${small[@]}"
sed 1d build-gpu/rates.csv | tee -a "$csv"

# ---- The program, on as many ranks as there are GPUs ----------------------------------------------------------------
if cmake -S . -B build-gpu-ranks "${cuda[@]}" >build-gpu/ranks.log 2>&1; then
    cmake --build build-gpu-ranks --parallel "$(nproc)" | tail -n 1
    for ((ranks = 1; ranks <= gpus; ranks++)); do
        record "collectives on $ranks ranks" mpirun --quiet -n "$ranks" build-gpu-ranks/comm_driver
    done
    if [[ -x .venv/bin/python ]]; then
        record "the program beside the CPU build's" env CNNSCOPE_CUDA_BIN="$PWD/build-gpu-ranks/cnnscope" \
            CNNSCOPE_CUDA_RANKS="$gpus" .venv/bin/python -m pytest -q -rs --no-header tests/test_cuda.py "${chosen[@]}"
    else
        left_out "the program beside the CPU build's" "no .venv (scripts/setup.sh)"
    fi
else
    left_out "collectives and the program" "MPI, netCDF or NCCL is not here (build-gpu/ranks.log)"
fi

# ---- PyTorch on the same network ------------------------------------------------------------------------------------
python=${TORCH_PYTHON:-python3}
if "$python" -c 'import torch, torchvision' 2>/dev/null; then
    "$python" scripts/torch_rates.py "${small[@]}" | tee -a "$csv" || failed=1
else
    left_out "PyTorch's rates" "$python has no torch and torchvision"
fi
exit "$failed"
