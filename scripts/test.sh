#!/usr/bin/env bash
# Set-up, then every test: in the Release build, and those on small inputs once more under ASan and UBSan.
#
#     scripts/test.sh [ctest arguments, such as -R tsne]
#
# The last line counts both builds; the exit status is 0 when nothing failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

passed=0 failed=0

# run_tests FOLDER [ctest arguments]: adds to the counts; a ctest that fails without counting is one failure.
run_tests() {
    local log status=0 summary
    log=$(mktemp)
    ctest --test-dir "$1" --output-on-failure "${@:2}" | tee "$log" || status=$?
    summary=$(sed -n 's/.*, \([0-9]*\) tests* failed out of \([0-9]*\)$/\1 \2/p' "$log")
    rm -f "$log"
    read -r wrong all <<<"${summary:-0 0}"
    if ((status != 0 && wrong == 0)); then
        wrong=1 all=$((all + 1))
    fi
    passed=$((passed + all - wrong)) failed=$((failed + wrong))
}

CNNSCOPE_TESTS=1 CNNSCOPE_CMAKE_OPTION=-DWARNINGS_AS_ERRORS=ON scripts/setup.sh
cmake -S . -B build-asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSANITIZE=ON >/dev/null
for folder in build build-asan; do
    cmake --build "$folder" --parallel "$(nproc)" | tail -n 1
done

run_tests build "$@"
sed -n 's/^all  *\([0-9]* of [0-9]*: .*\)/lines of kernels\/cuda that ran on the host executor: \1/p' \
    build/Testing/Temporary/LastTest.log
# Errors leave by longjmp or by ending the job, and MPI keeps memory to the end: leaks are not what this looks for.
ASAN_OPTIONS=detect_leaks=0 run_tests build-asan "$@"

echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
