#!/usr/bin/env bash
# Damaged files against every parser, by libFuzzer: build/fuzz (tests/fuzz.c), made by `cmake --build build` where clang is.
#
#     scripts/fuzz.sh HOURS       of all parsers together (0.01: half a minute); inputs found go on next time
#
# One line a parser: inputs tried and places of the code reached. Exit status 1 when one crashed, hung or took too much
# memory; the input is then in build/fuzz-corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
hours=${1:?usage: scripts/fuzz.sh HOURS}
build=${CNNSCOPE_BUILD:-build} # set by ctest
targets=(pth safetensors onnx dataset keyed csv netcdf names options checkpoint)
corpus=$build/fuzz-corpus
# Readers end by jumping out: what they held is lost to a process that goes on, and not counted. The rest is speed.
options=detect_leaks=0:quarantine_size_mb=4:allocator_release_to_os_interval_ms=-1
seconds=$(awk -v hours="$hours" -v n=${#targets[@]} 'BEGIN { s = int(hours * 3600 / n); print s < 1 ? 1 : s }')

mkdir -p "${targets[@]/#/$corpus/}"
.venv/bin/python tests/fuzz_seeds.py "$corpus" "$build/cnnscope"

failed=0
for target in "${targets[@]}"; do
    log=$corpus/$target.log
    if ! FUZZ=$target ASAN_OPTIONS=$options "$build/fuzz" -max_total_time="$seconds" -timeout=10 \
        -malloc_limit_mb=600 -rss_limit_mb=0 -artifact_prefix="$corpus/$target-" "$corpus/$target" >"$log" 2>&1; then
        failed=1
        tail -n 30 "$log"
    fi
    awk -v target="$target" '/^Done/ { runs = $2 } /cov:/ { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
        END { printf "%-11s %d inputs, %d places reached\n", target, runs, cov }' "$log"
done
exit $failed
