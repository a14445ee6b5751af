#!/usr/bin/env bash
# Make this clone ready: install what is missing, make .venv for the scripts, build the program into build/.
#
#     scripts/setup.sh            from anywhere; safe to repeat, and quick when nothing is missing
#
# What is missing is found by looking for it, not by asking the package manager, so that own builds and loaded modules
# count. On Debian as root it is installed by apt-get; otherwise it is named, with the module or library to look for.
# No sudo, no network when all is there. .venv needs PyPI once for each change of requirements.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    install_missing
    install_for_tests
    local python_ok=0
    make_venv || python_ok=$?
    fetch_cuda_headers
    build
    if ((python_ok != 0)); then
        say "the program is built (build/cnnscope), but not .venv, which the figures and tests need:"
        say "give PyPI access (pip's own settings are used) or install scripts/requirements.txt into .venv"
        exit 1
    fi
}

say() { echo "setup.sh: $*" >&2; }

# ---- libraries and tools --------------------------------------------------------------------------------------------

# What is needed | how it is found | Debian packages | what it is called elsewhere
needs() {
    cat <<'TABLE'
C compiler        | has_command cc           | build-essential        | GCC 10 or newer (module gcc)
make              | has_command make         | build-essential        | make
CMake             | has_command cmake        | cmake                  | CMake 3.22 or newer (module cmake)
pkg-config        | has_command pkg-config   | pkg-config             | pkg-config
MPI               | has_command mpicc        | libopenmpi-dev         | MPI 3 with mpicc (module openmpi)
mpirun            | has_command mpirun       | openmpi-bin            | MPI 3 with mpirun (module openmpi)
parallel netCDF-4 | has_parallel_netcdf      | libnetcdf-mpi-dev      | netCDF-C over parallel HDF5 (module netcdf, built with MPI)
ncdump            | has_command ncdump       | netcdf-bin             | ncdump, part of netCDF-C
oneDNN            | has_header dnnl.h        | libdnnl-dev            | oneDNN 2.x (module onednn)
OpenBLAS          | has_openblas             | libopenblas-openmp-dev | OpenBLAS with OpenMP (module openblas)
LAPACKE           | has_header lapacke.h     | liblapacke-dev         | LAPACKE, part of LAPACK and OpenBLAS
libzip            | has_header zip.h         | libzip-dev             | libzip 1.5 or newer
zlib              | has_header zlib.h        | zlib1g-dev             | zlib 1.2.11 or newer
OpenSSL           | has_header openssl/evp.h | libssl-dev             | OpenSSL 1.1.1 or newer
protobuf-c        | has_header protobuf-c/protobuf-c.h | libprotobuf-c-dev | protobuf-c 1.3 or newer, for .onnx files
protoc-c          | has_command protoc-c     | protobuf-c-compiler    | protoc-c, part of protobuf-c
onnx.proto        | has_onnx_proto           | libonnx-dev            | onnx/onnx.proto of ONNX 1.7 or newer
ONNX test data    | has_onnx_suite           | libonnx-testdata       | backend test data of ONNX, for the tests
cmocka            | has_header cmocka.h      | libcmocka-dev          | cmocka 1.1, for the tests
Python            | find_python              | python3 python3-venv   | Python 3.11 or newer with venv and pip (module python)
CA certificates   | has_certificates         | ca-certificates        | CA certificates for PyPI
TABLE
}

# Sets `packages` (Debian names) and `wanted` (lines for people) of all that is not found.
look() {
    packages=() wanted=()
    local what probe debian elsewhere command names
    while IFS='|' read -r what probe debian elsewhere; do
        read -ra command <<<"$probe"
        read -ra names <<<"$debian"
        if ! "${command[@]}" >/dev/null 2>&1; then
            packages+=("${names[@]}")
            wanted+=("$what Debian: ${names[*]}; elsewhere:$elsewhere")
        fi
    done < <(needs)
}

install_missing() {
    local packages wanted line
    look
    if ((${#packages[@]} == 0)); then
        return
    fi
    if [[ $(id -u) == 0 ]] && has_command apt-get; then
        say "installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        quietly apt-get update || true # a broken foreign source does not matter if the packages are found
        quietly apt-get install -y --no-install-recommends "${packages[@]}"
        hash -r
        look
    fi
    if ((${#packages[@]} > 0)); then
        say "missing (install or load these, then run me again):"
        for line in "${wanted[@]}"; do
            say "  $line"
        done
        if has_command apt-get; then
            say "on Debian, as root: apt-get install ${packages[*]}"
        fi
        exit 1
    fi
}

# Some tests are skipped without these, which nobody else needs: a Slurm cluster of their own, libFuzzer, and a browser.
install_for_tests() {
    if [[ -z ${CNNSCOPE_TESTS:-} || $(id -u) != 0 ]] || ! has_command apt-get; then
        return
    fi
    local packages=()
    PATH=$PATH:/usr/sbin has_command slurmd && PATH=$PATH:/usr/sbin has_command munged || packages+=(slurm-wlm munge)
    has_fuzzer 2>/dev/null || packages+=(clang libclang-rt-14-dev)
    has_command chromedriver || packages+=(chromium chromium-driver)
    if ((${#packages[@]} == 0)); then
        return
    fi
    say "installing ${packages[*]}, for the tests"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update || true
    quietly apt-get install -y --no-install-recommends "${packages[@]}" || say "the tests that need them will be skipped"
}

has_command() { command -v "$1" >/dev/null; }

# A header is looked for where the compiler looks (CPATH of modules included), and under CMAKE_PREFIX_PATH.
has_header() {
    local prefix flags=()
    for prefix in $(tr ':;' '  ' <<<"${CMAKE_PREFIX_PATH:-}"); do
        flags+=("-I$prefix/include")
    done
    cc -E -x c "${flags[@]}" - <<<"#include <$1>" >/dev/null 2>&1
}

has_parallel_netcdf() {
    pkg-config --exists netcdf-mpi || [[ $(nc-config --has-parallel4) == yes ]] ||
        [[ -e ${NETCDF_ROOT:-${NETCDF_DIR:-/nowhere}}/include/netcdf_par.h ]]
}

# Debian has one folder for each threading model of OpenBLAS; the one over OpenMP is needed.
has_openblas() {
    has_header openblas_config.h || return
    ! compgen -G '/usr/lib/*/openblas-*' || compgen -G '/usr/lib/*/openblas-openmp'
}

has_onnx_proto() {
    local prefix
    for prefix in /usr/include /usr/local/include $(tr ':' ' ' <<<"${CPATH:-}") \
        $(for root in $(tr ':;' '  ' <<<"${CMAKE_PREFIX_PATH:-}"); do echo "$root/include"; done); do
        [[ ! -e $prefix/onnx/onnx.proto ]] || return 0
    done
    return 1
}

has_fuzzer() {
    clang -fsanitize=fuzzer,address -x c - -o /dev/null <<<'int LLVMFuzzerTestOneInput(void) { return 0; }'
}

# Only Debian has a package of them; elsewhere that test is skipped.
has_onnx_suite() { [[ ! -e /etc/debian_version || -d /usr/share/libonnx-testdata/data ]]; }

has_certificates() {
    [[ ! -e /etc/debian_version || -s /etc/ssl/certs/ca-certificates.crt ]]
}

# ---- Python ---------------------------------------------------------------------------------------------------------

# The first python3 that can make the environment; one on PATH may be older or lack venv.
find_python() {
    local candidate
    for candidate in python3 /usr/bin/python3 python3.{14,13,12,11}; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local stamp=.venv/requirements.sha256
    if .venv/bin/python -c 'import numpy' 2>/dev/null && sha256sum --status --check "$stamp" 2>/dev/null; then
        return
    fi
    say "making .venv"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$(find_python)" -m venv --clear .venv || return
    quietly .venv/bin/python -m pip install --disable-pip-version-check -r scripts/requirements.txt || return
    sha256sum scripts/requirements.txt >"$stamp"
}

# NVIDIA's headers, for the tests that run the CUDA sources on the host executor: only where no toolkit has them. NCCL's
# library is kept where there is a compiler to link with it.
fetch_cuda_headers() {
    local cuda=.venv/cuda library=()
    if [[ -z ${CNNSCOPE_TESTS:-} || ! -x .venv/bin/python ]] ||
        { has_cuda_header cuda_runtime.h && has_cuda_header nccl.h; }; then
        return
    fi
    say "fetching NVIDIA's headers, for the tests"
    rm -rf "$cuda"
    quietly .venv/bin/python -m pip install --disable-pip-version-check --no-deps --no-compile --target "$cuda" \
        -r scripts/requirements-cuda.txt || { say "the tests that need them will be skipped" && return; }
    mkdir -p "$cuda/include" "$cuda/lib"
    cp -r "$cuda"/nvidia/*/include/. "$cuda/include"
    rm -rf "$cuda/include/cccl" # C++ libraries, which nothing here uses
    library=("$cuda"/nvidia/nccl/lib/libnccl.so.*)
    if has_command nvcc || [[ -x /usr/local/cuda/bin/nvcc ]]; then
        mv "${library[0]}" "$cuda/lib/libnccl.so"
    fi
    rm -rf "$cuda/nvidia"
}

has_cuda_header() {
    local folder
    for folder in "${CUDA_HOME:-/usr/local/cuda}" .venv/cuda; do
        [[ ! -e $folder/include/$1 ]] || return 0
    done
    has_header "$1"
}

# ---- the program ----------------------------------------------------------------------------------------------------

build() {
    quietly cmake -S . -B build -DCMAKE_BUILD_TYPE=Release ${CNNSCOPE_CMAKE_OPTION:+"$CNNSCOPE_CMAKE_OPTION"}
    quietly cmake --build build --parallel "$(nproc)" --target cnnscope
}

# Runs a command; its output is shown only when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        cat "$log" >&2
        say "failed: $*"
    fi
    rm -f "$log"
    return "$status"
}

main
