"""Which GPU a rank takes, in the forms in which Slurm is commonly asked for GPUs: the right one, or a refusal in one line.

On a real Slurm cluster whose GPUs are device files that do nothing, with the CUDA build's own mapping, as comm_driver shows
it: CNNSCOPE_CUDA_BIN names the program of the host executor, which lies beside it.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from slurm_cluster import Cluster, unavailable

DRIVER = Path(os.environ.get("CNNSCOPE_CUDA_BIN", "")).parent / "comm_driver"

if "CNNSCOPE_CUDA_BIN" not in os.environ or not DRIVER.is_file():
    pytest.skip("no CUDA build: scripts/cuda-host.sh makes one", allow_module_level=True)
if reason := unavailable():
    pytest.skip(f"no Slurm cluster can be made here: {reason}", allow_module_level=True)

EACH, SHARED, FEW = "each its own", "were given the same one", "ranks on a node of"
UNEVEN = "each its own, or were given the same one"  # Slurm may take three GPUs of one node and one of the other
FORMS = {  # options of srun; what comes of it
    "per task": ("--ntasks-per-node=2 --gpus-per-task=1", EACH),
    "per node": ("--ntasks-per-node=2 --gpus-per-node=2", EACH),
    "in all": ("--ntasks-per-node=2 --gpus=4", UNEVEN),
    "per socket": ("--ntasks-per-node=2 --sockets-per-node=2 --gpus-per-socket=1", EACH),
    "tasks per GPU": ("--ntasks-per-gpu=1 --gpus=4", UNEVEN),
    "gres, one for each": ("--ntasks-per-node=2 --gres=gpu:2", EACH),
    "more than are wanted": ("--ntasks-per-node=2 --gres=gpu:4", EACH),
    "bound to one each": ("--ntasks-per-node=2 --gpus-per-node=2 --gpu-bind=single:1", EACH),
    "gres, one for all": ("--ntasks-per-node=2 --gres=gpu:1", SHARED),
    "one a node": ("--ntasks-per-node=2 --gpus-per-node=1", SHARED),
    "too few": ("--ntasks-per-node=3 --gpus-per-node=2", FEW),
}


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=2, gpus=4) as made:
        yield made


@pytest.mark.parametrize("form", FORMS)
def test_gpu_of_a_rank(cluster, form):
    options, expected = FORMS[form]
    ranks = [] if "per-gpu" in options else [f"--ntasks={6 if expected == FEW else 4}"]
    done = subprocess.run(["srun", "--mpi=pmix", "--kill-on-bad-exit=1", "--nodes=2", *ranks, *options.split(), str(DRIVER),
                           "device"], env=os.environ | cluster.environment, capture_output=True, text=True, timeout=60,
                          check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("cnnscope: ")]
    taken = re.findall(r"^rank (\d) on (n\d) takes number (\d) of ([\d,]+)$", done.stdout, re.M)
    if expected == UNEVEN:
        expected = EACH if done.returncode == 0 else SHARED
    if expected != EACH:
        assert done.returncode != 0 and len(said) == 1 and expected in said[0] and not taken, done
        return
    assert done.returncode == 0 and not said and sorted(rank for rank, *_ in taken) == list("0123"), done
    devices = {(node, visible.split(",")[int(number)]) for _, node, number, visible in taken}
    assert len(devices) == 4 and [node for node, _ in sorted(devices)] == ["n0", "n0", "n1", "n1"], done
