#!/usr/bin/env bash
# What is too long, or too large, for the test command.
#
#     scripts/soak.sh large [FOLDER]      a result of more than 4 GiB in one variable and 2 GiB a rank, in FOLDER (/tmp)
#     scripts/soak.sh stops [N]           N (100) signals and N kills at random times, each followed by a restart
#     scripts/soak.sh kills HOURS         the same with other times, again and again
#     scripts/soak.sh writes [N]          N (200) kills inside a write, fsync, rename or removal of checkpoint or result
#
# large: the feature maps of 5,600 images of 112 x 112 (4.5 GB), written by two ranks and by one, compared with each
# other and, at both ends and across every 2 GiB, with small runs of these samples alone. Takes 10 GB of disk and some
# minutes. stops, kills and writes: tests/test_checkpoint.py, which prints how many interruptions there were, and the slowest end;
# results of restarts on other ranks, threads and batches are compared bit by bit. Needs build/cnnscope and .venv
# (scripts/setup.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

large() {
    local folder samples
    folder=$(mktemp -d "${1:-/tmp}/cnnscope-soak.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$folder'" EXIT
    .venv/bin/python - "$folder" <<'PYTHON'
import sys
import numpy as np
np.save(f"{sys.argv[1]}/images.npy", np.random.default_rng(0).integers(0, 256, (5600, 112, 112), np.uint8))
PYTHON
    maps "$folder" 2 "0:5600" two.nc
    maps "$folder" 1 "0:5600" one.nc
    # 0.8 MB a sample: byte 2^31 is in sample 2674, the second rank's first is 2800, byte 2^32 is in 5349
    for samples in 0:8 2670:2678 2796:2804 5345:5353 5592:5600; do
        maps "$folder" 1 "$samples" "part_${samples%:*}.nc" --quiet
    done
    .venv/bin/python - "$folder" <<'PYTHON'
import sys
from pathlib import Path
import netCDF4
folder = Path(sys.argv[1])
with netCDF4.Dataset(folder / "one.nc") as one, netCDF4.Dataset(folder / "two.nc") as two:
    maps = two["conv1_maps"]
    size = 4 * maps.size
    assert maps.shape == (5600, 16, 112, 112) and size > 2**32 and size / 2 > 2**31 and two.run_ranks == 2
    for first in range(0, 5600, 100):
        rows = slice(first, first + 100)
        assert one["conv1_maps"][rows].tobytes() == maps[rows].tobytes(), first
    assert (one["logits"][:] == two["logits"][:]).all()
    for path in sorted(folder.glob("part_*.nc")):
        with netCDF4.Dataset(path) as part:
            where = part["conv1_map_sample"][:]
            assert part["conv1_maps"][:].any(axis=(1, 2, 3)).all()
            assert part["conv1_maps"][:].tobytes() == maps[where[0]:where[-1] + 1].tobytes(), path
    print(f"large: {size / 2**30:.2f} GiB in one variable, {size / 2**31:.2f} GiB a rank: equal")
PYTHON
}

# maps FOLDER RANKS A:B OUTPUT [options]
maps() {
    mpirun --quiet -n "$2" build/cnnscope --model tests/data/model.pth --images "$1/images.npy" --samples "$3" \
        --feature-maps "conv1:$3" --attribution none --keep-maps none --pca 0 --tsne 0 --output "$1/$4" "${@:5}"
}

# interrupt N SEED TESTS
interrupt() {
    CNNSCOPE_STOPS=$1 CNNSCOPE_SEED=$2 .venv/bin/python -m pytest tests/test_checkpoint.py -x -q -rP -k "$3"
}

kills() {
    local log end=$((SECONDS + $(awk "BEGIN {print int(3600 * $1)}")))
    log=$(mktemp)
    while ((SECONDS < end)); do
        interrupt 8 "$RANDOM" interrupted >"$log" || { cat "$log"; exit 1; }
        grep -E 'interruptions|passed' "$log"
    done
    rm "$log"
}

case ${1:-} in
large) large "${2:-}" ;;
stops) interrupt "${2:-100}" 1 interrupted ;;
writes) interrupt "${2:-200}" 1 killed_while ;;
kills) kills "${2:-1}" ;;
*)
    sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
