#!/usr/bin/env bash
# Compile every CUDA kernel for real, and print what each needs: registers, spills, shared memory.
#
#     scripts/cuda-compile.sh [80 90 100]      architectures; default: these three
#
# Warnings are errors. Fails on a register that is spilled to memory, and on more static shared memory than a block may
# have (48 KiB). "skipped" (exit status 77) where there is no nvcc. Needs no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if [[ ! -x $nvcc ]]; then
    echo "skipped: no nvcc here"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

blas=()
for include in /usr/include/*/openblas-openmp /usr/include/openblas; do
    [[ ! -e $include/cblas.h ]] || blas+=(-I "$include")
done

# compile FILE ARCHITECTURE: leaves what ptxas says in $folder.
compile() {
    "$nvcc" -std=c++17 -O3 -arch="sm_$2" -Werror all-warnings -Xptxas -v -Xcompiler=-Wall,-Wextra,-fopenmp \
        -I kernels "${blas[@]}" -c "$1" -o "$folder/object-$2-$(basename "$1").o" 2>"$folder/$2-$(basename "$1").log" ||
        { cat "$folder/$2-$(basename "$1").log" >&2 && return 1; }
}
export -f compile
architectures=("${@:-80}")
if (($# == 0)); then
    architectures=(80 90 100)
fi
for arch in "${architectures[@]}"; do
    running=0
    for file in kernels/cuda/*.cu; do
        compile "$file" "$arch" &
        if ((++running >= $(nproc))); then
            wait -n
            running=$((running - 1))
        fi
    done
    while ((running-- > 0)); do
        wait -n
    done
done

# One line a kernel: where, what, registers, bytes of shared memory, bytes spilled.
for log in "$folder"/*.log; do
    c++filt <"$log" | awk -v name="$(basename "$log" .log)" '
        /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2]; sub(/\(.*/, "", kernel); spill = 0 }
        /spill stores/ { spill = $5 + $9 }
        /Used [0-9]+ registers/ {
            shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
            match($0, /Used [0-9]+/)
            printf "sm_%-22s %-60.60s %3d registers, %5d bytes shared, %d spilled\n", name, kernel,
                substr($0, RSTART + 5) + 0, shared, spill
            if (spill > 0 || shared > 49152) bad = 1
        }
        END { exit bad }' || failed=1
done
if [[ ${failed:-0} == 1 ]]; then
    echo "cuda-compile.sh: a kernel spills registers, or has more than 48 KiB of static shared memory" >&2
    exit 1
fi
