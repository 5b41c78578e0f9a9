"""The jobs of a workflow by the files that they make: which run, which wait in a queue, which have failed."""

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from omnitune.records import INCOMPLETE, SNAKEMAKE, is_locked, list_records

ERROR = re.compile(r"Error in (?:rule|checkpoint) (\w+)")
FIELD = re.compile(r"    (\w+): (.*)")
TAIL_BYTES = 1 << 16
QUEUE_SECONDS = 10  # that a scheduler may take to answer


@dataclass(frozen=True)
class Jobs:
    """The jobs that Snakemake has started, and not seen the end of, or seen fail.

    Attributes:
        running: files that jobs are making.
        waiting: files of jobs that wait in a scheduler's queue, with its reason.
        stopped: files that were being made when Snakemake was killed.
        failed: files of jobs that have failed in the last run, with what their logs say.
    """

    running: frozenset[str]
    waiting: dict[str, str]
    stopped: frozenset[str]
    failed: dict[str, str]


def read_jobs() -> Jobs:
    """The jobs of the workflow in the working directory."""
    started = {name: _job_id(record) for name, record in list_records(INCOMPLETE).items()}
    queue = _queue(set(filter(None, started.values()))) if any(started.values()) else {}
    log = _newest_log()
    locked = is_locked() and not _was_killed(log)
    states = {name: queue.get(number or "", ("RUNNING" if locked else "", "")) for name, number in started.items()}
    waiting = {name: reason for name, (state, reason) in states.items() if state == "PENDING"}
    running = {name for name, (state, _) in states.items() if state not in {"PENDING", ""}}
    failed = {name: text for name, text in _failed(log).items() if name not in running | waiting.keys()}
    return Jobs(frozenset(running), waiting, frozenset(states.keys() - running - waiting.keys()), failed)


def _job_id(record: Path) -> str | None:
    """The number under which a scheduler knows the job; None for jobs of this machine."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return str(found["external_jobid"]) if found["external_jobid"] else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # gone in this moment, or half-written
        return None


def _queue(numbers: set[str]) -> dict[str, tuple[str, str]]:
    """State and reason of jobs that SLURM has not forgotten; none where it cannot be asked from here."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--jobs", ",".join(sorted(numbers)), "--format", "%i|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUEUE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = (line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
    return {number: (state, reason) for number, state, reason in rows}


def _newest_log() -> list[str]:
    """The lines that the newest run has logged so far."""
    logs = sorted((SNAKEMAKE / "log").glob("*.snakemake.log"))
    try:
        return logs[-1].read_text(encoding="utf-8", errors="replace").splitlines() if logs else []
    except OSError:
        return []


def _was_killed(log: list[str]) -> bool:
    """Whether the newest run was on this machine, and none is here now. Of another machine, its lock tells."""
    if f"  Host: {platform.node()}" not in log[:20]:
        return False
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "snakemake" in " ".join(process.cmdline()[:3]) and Path(process.cwd()) == Path.cwd():
                return False
    return True


def _failed(log: list[str]) -> dict[str, str]:
    """Files of jobs that failed in the newest run, with why; whether a later try made them the caller sees."""
    found = {}
    for rule, outputs, job_log in _errors(log):
        for output in outputs:
            found[output] = last_error(Path(job_log)) if job_log else f"{rule} has failed"
    return found


def _errors(lines: list[str]) -> Iterator[tuple[str, list[str], str]]:
    """Rule, outputs and log of each failed job that a log of Snakemake tells of."""
    for number, line in enumerate(lines):
        match = ERROR.match(line)
        if match is None:
            continue
        fields = {}
        for following in lines[number + 1 :]:
            field = FIELD.match(following)
            if field is None:
                break
            fields[field[1]] = field[2]
        log = fields.get("log", "").partition(" (check log file")[0].split(", ")[0]
        yield match[1], fields.get("output", "").split(", "), log


def last_error(log: Path) -> str:
    """The sentence that a job's log ends with, or where to look."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return f"failed, without a log ({log})"
    errors = [line.partition("Error: ")[2] for line in lines if line.startswith("Error: ")]
    own = [text for text in errors if "above" not in text]  # a launcher's last words are about those of its processes
    return own[-1] if own else f"failed: see {log}"
