"""The nodes of an allocation: whether each sees the project, has its GPUs, and reaches the others."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnitune.doctor.findings import Finding
from omnitune.launching.job import job_port, slurm_address, slurm_hosts

PROBE_SECONDS = 180
CLOCK_SECONDS = 5.0


def check_nodes() -> Iterator[Finding]:
    """Runs a probe on each node of the SLURM job that this process runs in; nothing outside of one."""
    try:
        hosts = slurm_hosts()
    except ValueError as error:
        yield Finding("problem", "nodes", str(error))
        return
    if not hosts:
        return
    token = Path(f".doctor-{secrets.token_hex(8)}")
    token.write_text(token.name, encoding="utf-8")
    try:
        command = [*_STEP, "--nodes", str(len(hosts)), "--ntasks", str(len(hosts)), "--ntasks-per-node", "1"]
        probe = [sys.executable, "-m", "omnitune.doctor.probe", str(token.absolute()), slurm_address(hosts[0])]
        done = subprocess.run(
            [*command, *probe, str(job_port())], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        output, errors = done.stdout, done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        output, errors = "", f"{error}"
    finally:
        token.unlink()
    yield from judge(hosts, output, errors)


_STEP = ("srun", "--overlap", "--kill-on-bad-exit=0")


def judge(hosts: list[str], output: str, errors: str) -> Iterator[Finding]:
    """What the probes of these nodes have said, one line of JSON each; others print what they like."""
    said = list(_rows(output))
    if len(said) < len(hosts):
        text = f"{len(said)} of {len(hosts)} nodes ({', '.join(hosts)}) answered. {errors.strip()[-500:]}"
        yield Finding("problem", "nodes", text)
    for row in said:
        host = row["host"]
        if not row["sees"]:
            text = (
                f"{host} does not see {os.environ.get('PWD', 'the project')}: put it on a file system that all "
                "nodes share"
            )
            yield Finding("problem", "nodes", text)
        if abs(row["clock"]) > CLOCK_SECONDS:
            text = (
                f"the clock of {host} is {row['clock']:+.0f} s from the file system's, by which jobs run again: set it"
            )
            yield Finding("problem", "nodes", text)
        if row["error"]:
            yield Finding("problem", "nodes", f"{host} does not reach the others by {row['backend']}: {row['error']}")
    if len(said) == len(hosts) and all(row["sees"] and not row["error"] for row in said):
        gpus = ", ".join(f"{row['host']}: {row['gpus']} GPUs" for row in said)
        rate = min(row["gigabytes_per_second"] for row in said)
        speed = f", and sum over all with {said[0]['backend']} at {rate:.2f} GB/s" if len(said) > 1 else ""
        yield Finding("ok", "nodes", f"{gpus}; all see the project{speed}")


def _rows(output: str) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        if line.startswith('{"host"'):
            yield json.loads(line)
