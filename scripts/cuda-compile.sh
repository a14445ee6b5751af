#!/usr/bin/env bash
# Compile and link the CUDA build for real, and print what each kernel needs: registers, spills, shared memory.
#
#     scripts/cuda-compile.sh [80 90 100]      architectures; default: these three
#
# The whole program, with NVIDIA's own libraries; warnings are errors. Fails on a register that is spilled to memory, and on
# more static shared memory than a block may have (48 KiB). "skipped" (exit status 77) where there is no nvcc. Needs no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
if [[ ! -x $nvcc ]]; then
    echo "skipped: no nvcc here"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
architectures=("${@:-80}")
if (($# == 0)); then
    architectures=(80 90 100)
fi

if ! cmake -S . -B "$folder" -G 'Unix Makefiles' -DCMAKE_BUILD_TYPE=Release -DCUDA=ON -DWARNINGS_AS_ERRORS=ON \
    -DBUILD_TESTING=OFF -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_FLAGS=-Xptxas=-v \
    -DCMAKE_CUDA_ARCHITECTURES="$(printf '%s-real;' "${architectures[@]}")" >"$folder/log" 2>&1 ||
    ! cmake --build "$folder" --target cnnscope -- -O -j "$(nproc)" >"$folder/log" 2>&1; then
    cat "$folder/log" >&2
    exit 1
fi
"$nvcc" --version | tail -n 2 | head -n 1
if ! ldd "$folder/cnnscope" | grep nccl; then # what is linked, and found where it runs
    echo "cuda-compile.sh: the program was not linked with NCCL" >&2
    exit 1
fi

# One line a kernel: where, what, registers, bytes of shared memory, bytes spilled.
if ! c++filt <"$folder/log" | awk '
    /Building CUDA object/ { file = $NF; sub(/.*\//, "", file); sub(/\.o$/, "", file) }
    /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2]; arch = part[4]; sub(/\(.*/, "", kernel); spill = 0 }
    /spill stores/ { spill = $5 + $9 }
    /Used [0-9]+ registers/ {
        shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
        match($0, /Used [0-9]+/)
        printf "%-7s %-18s %-60.60s %3d registers, %5d bytes shared, %d spilled\n", arch, file, kernel,
            substr($0, RSTART + 5) + 0, shared, spill
        kernels++
        if (spill > 0 || shared > 49152) bad = 1
    }
    END { exit bad || !kernels }' | sort; then
    echo "cuda-compile.sh: a kernel spills registers, or has more than 48 KiB of static shared memory" >&2
    exit 1
fi
