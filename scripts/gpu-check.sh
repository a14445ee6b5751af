#!/usr/bin/env bash
# For whoever has an NVIDIA GPU: build the CUDA kernels, run their tests on the device, and those of compute-sanitizer.
#
#     scripts/gpu-check.sh [ARCHITECTURE]      default: native, what CMake finds in this machine
#
# Needs CUDA 12 or 13, OpenBLAS, cmocka, pkg-config; MPI, netCDF and NCCL only for the collectives, which are skipped
# without them. Results are written to gpu-check.csv: what, result, seconds.
# This script has not been run on a GPU yet: what it finds first may be itself.
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
    echo "$what,$result,$((SECONDS - start))" | tee -a "$csv"
}

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L | grep -q GPU; then
    echo "gpu-check.sh: no GPU is visible (nvidia-smi -L), one is needed: run me on a GPU node" >&2
    exit 1
fi
nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv
echo "what,result,seconds" >"$csv"

cmake -S . -B build-gpu -DCUDA=ON -DKERNELS_ONLY=ON -DCMAKE_CUDA_ARCHITECTURES="${1:-native}"
cmake --build build-gpu --parallel "$(nproc)"
for test in ends linalg ops graph kernels; do
    record "test_$test" "build-gpu/test_$test"
done

if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        for test in ends linalg; do
            record "$tool test_$test" compute-sanitizer --tool "$tool" --error-exitcode 9 "build-gpu/test_$test"
        done
    done
else
    echo "compute-sanitizer is not here: its four tools are skipped"
fi

# The program's own build has the collectives; on one GPU there is one rank.
if cmake -S . -B build-gpu-ranks -DCUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${1:-native}" >build-gpu-ranks.log 2>&1; then
    cmake --build build-gpu-ranks --parallel "$(nproc)" --target comm_driver
    for ((ranks = 1; ranks <= $(nvidia-smi -L | wc -l); ranks++)); do
        record "collectives on $ranks ranks" mpirun --quiet -n "$ranks" build-gpu-ranks/comm_driver
    done
else
    echo "MPI, netCDF or NCCL is not here (build-gpu-ranks.log): the collectives are skipped"
fi
exit "$failed"
