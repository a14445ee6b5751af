#!/usr/bin/env bash
# Proposes nodes, ranks, memory and time for a run on a Slurm partition, by cnnscope --plan, and prints the sbatch line.
#
#     scripts/submit.sh [--go] PARTITION [options of sbatch --] [embed] options of cnnscope
#     scripts/submit.sh main --account=me -- --model model.pth --images test.npy --output result.nc
#
# --go submits it. What the partition's nodes have is asked of sinfo; the plan tries a few samples here, on the node you
# are on, and its seconds are divided by the cores a rank will have there. Nodes are doubled until the run fits and is
# expected to end within HOURS (1, or as the variable says). Memory: the plan's and a fifth more. Time: twice the
# estimate, 5 minutes at least, the partition's limit at most. Run it in the folder that relative paths are from; the
# program is found as slurm/cpu.sbatch finds it. All of this is arithmetic on estimates: look at the line first.
set -euo pipefail

usage() {
    sed -n '4,5s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
stop() {
    echo "submit.sh: $*" >&2
    exit 1
}

go=0
if [[ ${1:-} == --go ]]; then
    go=1
    shift
fi
if (($# < 2)) || [[ $1 == -* ]]; then
    usage
fi
partition=$1 extra=()
shift
for ((i = 1; i <= $#; i++)); do
    if [[ ${!i} == -- ]]; then
        extra=("${@:1:i-1}")
        shift "$i"
        break
    fi
done

program=${CNNSCOPE:-build/cnnscope}
if [[ ! -x $program ]]; then
    program=$(command -v cnnscope) || stop "no build/cnnscope here and no cnnscope on PATH: build it, or set CNNSCOPE"
fi
scripts=$(dirname "${BASH_SOURCE[0]}")/../slurm

# ---- The partition: its most frequent kind of node --------------------------------------------------------------------

command -v sinfo >/dev/null || stop "no sinfo: this is not a machine of a Slurm cluster"
kinds=$(sinfo -h -N -p "$partition" -t idle,mix,alloc,comp -o '%X|%Y|%m|%G' | sort | uniq -c | sort -rn) ||
    stop "sinfo does not know partition $partition"
[[ -n $kinds ]] || stop "partition $partition has no node that is up, or there is no such partition (sinfo shows all)"
read -r nodes kind <<<"${kinds%%$'\n'*}"
IFS='|' read -r sockets cores memory gres <<<"$kind"
settings=$(scontrol show partition "$partition" | tr ' ' '\n')
setting() { sed -n "s/^$1=//p" <<<"$settings"; }
most_nodes=$(setting MaxNodes)
if [[ $most_nodes =~ ^[0-9]+$ ]] && ((most_nodes < nodes)); then
    nodes=$most_nodes
fi

# [days-]hours:minutes:seconds in minutes; a year where there is no limit.
minutes() {
    local days=0 time=$1 hours minutes
    if [[ ! $time =~ ^([0-9]+-)?[0-9]+:[0-9]+:[0-9]+$ ]]; then
        echo 525600
        return
    fi
    if [[ $time == *-* ]]; then
        days=${time%%-*} time=${time#*-}
    fi
    IFS=: read -r hours minutes _ <<<"$time"
    echo $((days * 1440 + 10#$hours * 60 + 10#$minutes))
}
limit=$(minutes "$(setting MaxTime)")

# One rank a GPU for a program that uses them, else one a socket.
file=cpu.sbatch per_node=$sockets cpus=$cores devices=()
if ldd "$program" 2>/dev/null | grep -q libnccl; then
    gpus=$(sed -n 's/^.*gpu:\([a-zA-Z0-9_-]*:\)\{0,1\}\([0-9][0-9]*\).*$/\2/p' <<<"$gres")
    [[ -n $gpus ]] || stop "partition $partition has no GPUs, and $program was built for them: choose another"
    file=gpu.sbatch per_node=$gpus cpus=$((sockets * cores / gpus > 0 ? sockets * cores / gpus : 1))
    devices=(--gpus-per-task=1)
fi

# ---- The plan, on more and more nodes -----------------------------------------------------------------------------------

here=$(nproc)
threads=$((here < cpus ? here : cpus))
value() { sed -n "s/^$1: \([0-9.e+-]*\).*$/\1/p" <<<"$plan"; }
compute() { awk "BEGIN { printf \"%.0f\", $1 }"; }

used=1 patience=$(compute "${HOURS:-1} * 3600")
while :; do
    ranks=$((used * per_node))
    errors=$(mktemp)
    status=0
    plan=$("$program" "$@" --threads "$threads" --plan="$ranks" 2>"$errors") || status=$?
    if ! grep -q '^fits: ' <<<"$plan"; then # a plan that does not fit here may fit there
        cat "$errors" >&2
        rm -f "$errors"
        exit "$((status > 0 ? status : 1))"
    fi
    rm -f "$errors"
    megabytes=$(compute "1.2 * $(value bytes_per_rank) * $per_node / 1048576 + 100")
    seconds=$(compute "$(value seconds_total) * $threads / $cpus + 5")
    if ((megabytes <= memory && seconds <= patience)) || ((used >= nodes)); then
        break
    fi
    used=$((2 * used < nodes ? 2 * used : nodes))
done
if ((megabytes > memory)); then
    echo "$plan" >&2
    stop "$nodes nodes of $memory MB do not hold it: $megabytes MB a node are needed; see bytes_per_rank above," \
        "--tsne-samples and --pre-pca"
fi
time=$(((2 * seconds + 59) / 60))
time=$((time < 5 ? 5 : time))
note=
if ((time > limit)); then
    note="the limit of $partition, $limit minutes, may be too short: give --checkpoint DIR, then the job goes on when it is requeued"
    time=$limit
fi

command=(sbatch --partition="$partition" --nodes="$used" --ntasks-per-node="$per_node" --cpus-per-task="$cpus"
    "${devices[@]}" --mem="${megabytes}M" --time="$time" "${extra[@]}" "$(realpath -s --relative-base=. "$scripts/$file")" "$@")
echo "# $partition: $nodes nodes of $sockets x $cores cores, $memory MB, $limit minutes at most"
echo "# $(value samples) samples on $ranks ranks: $(compute "$(value bytes_per_rank) / 1048576") MB a rank," \
    "about $seconds s there, a result of $(compute "$(value result_bytes) / 1048576") MB"
if [[ -n $note ]]; then
    echo "# $note"
fi
printf '%q ' "${command[@]}"
echo
if ((go)); then
    "${command[@]}"
fi
