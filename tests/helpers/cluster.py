"""A real SLURM on this machine: one controller and two nodes, from Debian's packages, stopped again at the end."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/run/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
MinJobAge=3600
KillWait=3
InactiveLimit=0
SwitchType=switch/none
SlurmdParameters=config_overrides
GresTypes=gpu
SlurmctldPidFile={top}/run/slurmctld.pid
SlurmdPidFile={top}/run/slurmd-%n.pid
SlurmdSpoolDir={top}/run/spool-%n
StateSaveLocation={top}/run/state
SlurmctldLogFile={top}/log/slurmctld.log
SlurmdLogFile={top}/log/slurmd-%n.log
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=500 State=UP
"""


def missing_programs() -> list[str]:
    """Programs of a SLURM that are not installed."""
    return [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "srun") if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _write_config(top: Path) -> None:
    for folder in ("run/state", "log", "dev"):
        (top / folder).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    (top / "slurm.conf").write_text(SLURM_CONF.format(host=host, top=top, ports=_free_ports(3)))
    (top / "gres.conf").write_text(f"NodeName=node[1-2] AutoDetect=off Name=gpu File={top}/dev/gpu[0-1]\n")
    for device in ("gpu0", "gpu1"):  # SLURM wants character devices; these are copies of /dev/null
        subprocess.run(["mknod", str(top / "dev" / device), "c", "1", "3"], check=True)


SYSTEM_FOLDER = Path("/etc/slurm")
CONFIG_FILES = ("slurm.conf", "gres.conf")


def _install_config(top: Path) -> None:
    """Links the config to where SLURM looks by itself: jobs lose SLURM_CONF on their way through Snakemake."""
    SYSTEM_FOLDER.mkdir(exist_ok=True)
    for name in CONFIG_FILES:
        link = SYSTEM_FOLDER / name
        if link.exists() and not link.is_symlink():
            raise RuntimeError(f"{link} exists: this machine has a SLURM of its own, which the test leaves alone")
        link.unlink(missing_ok=True)
        link.symlink_to(top / name)


def _remove_config(top: Path) -> None:
    for name in CONFIG_FILES:
        link = SYSTEM_FOLDER / name
        if link.is_symlink() and link.readlink() == top / name:
            link.unlink()


def _start_munge(top: Path) -> None:
    key = top / "run" / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    command = [str(_program("munged")), "--force", "--socket", str(top / "run/munge.socket"), "--key-file", str(key)]
    command += ["--pid-file", str(top / "run/munged.pid"), "--seed-file", str(top / "run/munge.seed")]
    subprocess.run([*command, "--log-file", str(top / "log/munged.log")], check=True)


def _wait_for_nodes(environment: dict[str, str], top: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        command = ["sinfo", "--noheader", "--states", "idle", "--Node", "--format", "%N"]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if {"node1", "node2"} <= set(found.stdout.split()):
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-2000:] for path in (top / "log").glob("*.log"))
    raise RuntimeError(f"the SLURM nodes did not come up:\n{logs}")


def _stop(top: Path) -> None:
    for name in ("slurmd-node1", "slurmd-node2", "slurmctld", "munged"):
        pid_file = top / "run" / f"{name}.pid"
        if pid_file.exists():
            subprocess.run(["kill", pid_file.read_text().strip()], check=False)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any((top / "run").glob("*.pid")):
        time.sleep(0.2)


@contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """Starts the cluster; gives the environment in which sbatch and srun talk to it."""
    # Not below pytest's folders: the paths of SLURM's sockets would be longer than the 107 characters that there are.
    top = Path(tempfile.mkdtemp(prefix="slurm-"))
    _write_config(top)
    _install_config(top)
    environment = dict(os.environ, SLURM_CONF=str(top / "slurm.conf"))
    environment["PATH"] += ":/usr/sbin:/sbin"
    try:
        _start_munge(top)
        subprocess.run([str(_program("slurmctld")), "-f", str(top / "slurm.conf")], env=environment, check=True)
        for node in ("node1", "node2"):
            subprocess.run(
                [str(_program("slurmd")), "-N", node, "-f", str(top / "slurm.conf")], env=environment, check=True
            )
        _wait_for_nodes(environment, top)
        yield environment
    finally:
        subprocess.run(["scancel", "--user", "root"], env=environment, check=False, capture_output=True)
        _stop(top)
        _remove_config(top)
        shutil.rmtree(top, ignore_errors=True)
