"""A real Slurm cluster of a few nodes on this one machine, for tests of the sbatch files.

munged, slurmctld and one slurmd a node, all on loopback, under one temporary folder, with ports of its own, so that two
clusters can be up at once. Each node lives in namespaces of its own (processes, host name, /dev/shm, SysV IPC), as real
hosts do: ending a node's first process is a power cut. Every daemon is told to die with this process, so nothing stays
behind however a test run ends. No cgroups, no accounting, nothing under /etc; GPUs are device files that do nothing.

What Slurm waits for is made short where a site would have minutes: KillWait 3 s, a lost node 10 s, a requeued job 5 s.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc", "--mount", "--propagation",
              "private"]
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"  # where the daemons are

# The first process of a node. It stays, and so collects the orphans of its namespace.
NODE = r"""
set -e
hostname "$1"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
slurmd -D -c -N "$1" -f "$2/slurm.conf" -L "$2/log/slurmd.$1" &
wait
"""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=3
MinJobAge=3600
SlurmdTimeout=10
MessageTimeout=10
JobRequeue=1
NodeName=n[0-{last}] NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs={cpus} Sockets=2 CoresPerSocket={cores} \
ThreadsPerCore=1 RealMemory=8000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
"""


def unavailable() -> str | None:
    """Why no cluster can be made here, in a few words; None where it can."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare"):
        if not shutil.which(program, path=PATH):
            return f"no {program} (Debian: slurm-wlm, munge)"
    probe = subprocess.run([*NAMESPACES, "sh", "-c", "hostname n0 && mount -t tmpfs tmpfs /dev/shm"],
                           capture_output=True, text=True, check=False)
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else None


@dataclass
class Job:
    """What Slurm says of a job when it has ended."""

    identifier: str
    state: str  # COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ...
    status: int  # exit status of the batch script
    log: str


class Cluster:
    """`with Cluster() as cluster`: up inside, gone after."""

    def __init__(self, nodes: int = 3, cpus: int = 8, gpus: int = 4) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cnnscope-slurm-"))
        self.nodes = [f"n{i}" for i in range(nodes)]
        self.environment = {
            "PATH": PATH,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PMIX_MCA_gds": "hash",  # PMIx's shared-memory store may warn in a container
            # With busy cores, ranks of one of ten jobs over several nodes left MPI_Init while another was still inside
            # the first of its two barriers, and that one crashed on their first message (Slurm 22.05, Open MPI 4.1.4).
            "OMPI_MCA_btl_tcp_if_include": "lo",  # which Open MPI leaves out unless told
            "OMPI_MCA_oob_tcp_if_include": "lo",
            "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # not allowed in containers
            "OMPI_MCA_mpi_yield_when_idle": "1",  # more ranks than cores
            "OMP_WAIT_POLICY": "passive",
        }
        self._daemons: dict[str, subprocess.Popen] = {}
        self._sizes = {"cpus": cpus, "cores": cpus // 2, "gpus": gpus}

    def __enter__(self) -> Cluster:
        try:
            self._write_files()
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons:
            self._daemons["slurmctld"].terminate()  # it collects its helper
            try:
                self._daemons["slurmctld"].wait(5)
            except subprocess.TimeoutExpired:
                pass
        for daemon in self._daemons.values():
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- daemons

    def _write_files(self) -> None:
        folder, base = self.folder, free_ports(1 + len(self.nodes))
        for name in ("munge", "state", "log", *(f"{kind}/{n}" for kind in ("spool", "tmp") for n in self.nodes)):
            (folder / name).mkdir(parents=True)
        for path in (folder, folder / "munge"):
            path.chmod(0o755)
        (folder / "munge" / "key").write_bytes(os.urandom(128))
        (folder / "munge" / "key").chmod(0o600)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(
            folder=folder, host=socket.gethostname().split(".")[0], port=base, first_port=base + 1,
            last_port=base + len(self.nodes), last=len(self.nodes) - 1, **self._sizes), encoding="utf-8")
        with open(folder / "gres.conf", "w", encoding="utf-8") as gres:
            for i in range(self._sizes["gpus"]):
                os.mknod(folder / f"gpu{i}", 0o20666, os.makedev(1, 3))  # a second /dev/null
                gres.write(f"NodeName=n[0-{len(self.nodes) - 1}] Name=gpu File={folder}/gpu{i}\n")
        hosts = Path("/etc/hosts").read_text(encoding="utf-8") + "".join(f"127.0.0.1 {n}\n" for n in self.nodes)
        (folder / "hosts").write_text(hosts, encoding="utf-8")

    def _start(self, name: str, command: list[str]) -> None:
        libc = ctypes.CDLL(None)
        log = self.folder / "log" / f"{name}.out"
        with open(log, "wb") as out:
            self._daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env=os.environ | self.environment,
                preexec_fn=lambda: libc.prctl(1, signal.SIGKILL))  # PR_SET_PDEATHSIG: dies when this process does

    def _start_all(self) -> None:
        munge = self.folder / "munge"
        self._start("munged", ["munged", "--foreground", f"--key-file={munge}/key", f"--socket={munge}/socket",
                               f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
                               "--num-threads=2"])
        self._until("munged listens", (munge / "socket").exists)
        configuration = self.environment["SLURM_CONF"]
        self._start("slurmctld", ["slurmctld", "-D", "-i", "-f", configuration, "-L", f"{self.folder}/log/slurmctld"])
        for node in self.nodes:
            self.power_on(node)
        self.until_idle()

    def until_idle(self) -> None:
        self._until("all nodes are idle", lambda: self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N",
                                                               check=False).split() == self.nodes)

    def _until(self, what: str, condition) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-1000:]}"
                                 for p in sorted((self.folder / "log").iterdir()))
                raise TimeoutError(f"the cluster is not up: waited until {what}\n{logs}")
            time.sleep(0.05)

    def power_on(self, node: str) -> None:
        """Boots a node: as after a real boot, its temporary folders are empty."""
        for kind in ("spool", "tmp"):
            shutil.rmtree(self.folder / kind / node)
            (self.folder / kind / node).mkdir()
        self._start(node, [*NAMESPACES, "bash", "-c", NODE, "node", node, str(self.folder)])

    def power_off(self, node: str) -> None:
        """The node and all that runs on it are gone at once; Slurm notices after SlurmdTimeout."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def signal(self, node: str, number: int) -> None:
        """To all processes of a node: SIGSTOP makes it a hung one, SIGCONT ends that."""
        own = self._namespace(node)
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/uts") == own:
                    os.kill(int(entry.name), number)
            except OSError:
                pass  # it ended while we looked

    def _namespace(self, node: str) -> str | None:
        """None where the node is off."""
        try:
            children = Path(f"/proc/{self._daemons[node].pid}/task/{self._daemons[node].pid}/children").read_text()
            return os.readlink(f"/proc/{children.split()[0]}/ns/uts")
        except (OSError, IndexError):
            return None

    # ---- jobs

    def command(self, *words: object, check: bool = True) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run([str(w) for w in words], env=os.environ | self.environment, capture_output=True, text=True,
                              check=False, timeout=60)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, script: Path, *arguments: object, options: tuple[object, ...] = (), folder: Path,
               environment: dict[str, str] | None = None) -> str:
        """sbatch OPTIONS SCRIPT ARGUMENTS in `folder`, where the logs go too; gives the job's number."""
        done = subprocess.run(["sbatch", "--parsable", *(str(o) for o in options), str(script),
                               *(str(a) for a in arguments)], cwd=folder, capture_output=True, text=True, check=False,
                              env=os.environ | self.environment | (environment or {}), timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, identifier: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.command("scontrol", "-o", "show", "job", identifier)))

    def wait(self, identifier: str, timeout: float = 60) -> Job:
        """Until the job has ended and its nodes are free; a job that takes longer is cancelled and fails the test."""
        deadline = time.monotonic() + timeout
        while (fields := self.state(identifier))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            if time.monotonic() > deadline:
                self.command("scancel", "--full", identifier)
                raise AssertionError(f"job {identifier} is {fields['JobState']} after {timeout} s:\n{_text(fields)}")
            time.sleep(0.1)
        return Job(identifier, fields["JobState"], int(fields["ExitCode"].split(":")[0]), _text(fields))

    def processes(self, word: str) -> dict[str, list[int]]:
        """For each node its living processes whose program is called `word`."""
        namespaces = {self._namespace(node): node for node in self.nodes}
        found: dict[str, list[int]] = {node: [] for node in self.nodes}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "comm").read_text().strip() == word:
                    node = namespaces.get(os.readlink(entry / "ns/uts"))
                    if node and (entry / "cmdline").read_bytes():  # a zombie has none
                        found[node].append(int(entry.name))
            except OSError:
                pass  # it ended while we looked
        return found


def _text(fields: dict[str, str]) -> str:
    path = Path(fields.get("StdOut", "/nowhere"))
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on, below those the kernel gives out by itself."""
    for attempt in range(200):
        first = 20000 + (os.getpid() * 37 + attempt * 101) % 10000
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise OSError("no free ports")
