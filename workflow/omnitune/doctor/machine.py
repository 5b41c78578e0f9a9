"""This machine and this folder: packages, GPUs and their driver, disk, the file system, the config."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from omnitune.distributed.gpus import machine_gpus
from omnitune.doctor.findings import Finding, answer_of
from omnitune.io.files import lock
from omnitune.named_files import read_named_files
from omnitune.project import Project

LOW_DISK, LITTLE_DISK = 2e9, 50e9  # bytes: jobs fail soon; what a base model and its first checkpoint need
LOW_FILES = 10_000
CLOCK_SECONDS = 2.0
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}


def check_packages() -> Iterator[Finding]:
    """Whether what is installed is what this package asks for."""
    wrong, seen = [], 0
    for text in importlib.metadata.requires("omnitune") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        seen += 1
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} is installed, wanted is {wanted.specifier}")
    for text in wrong:
        yield Finding("problem", "packages", f"{text}: pip install -r requirements.lock")
    if not wrong:
        python = f"Python {platform.python_version()} ({sys.executable})"
        yield Finding("ok", "packages", f"{seen} packages as asked for, {python}")


def check_gpus() -> Iterator[Finding]:
    """Whether torch can use the GPUs that this machine has; it is loaded only where there are some."""
    gpus = machine_gpus()
    if not gpus:
        hidden = "; CUDA_VISIBLE_DEVICES hides them" if os.environ.get("CUDA_VISIBLE_DEVICES") is not None else ""
        yield Finding("note", "GPUs", f"none on {platform.node()}{hidden}: what runs here computes on the CPU")
        return
    listed = answer_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if listed is None:
        yield Finding("problem", "GPUs", "nvidia-smi does not answer: the driver is not loaded, or a GPU has failed")
        return
    import torch

    driver = listed.splitlines()[0].split(", ")[1]
    if torch.version.cuda is None:
        yield Finding(
            "problem", "GPUs", f"torch {torch.__version__} is built without CUDA: install the one that has it"
        )
    elif not torch.cuda.is_available():
        text = (
            f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use them with driver {driver}: update it"
        )
        yield Finding("problem", "GPUs", text)
    else:
        free, total = torch.cuda.mem_get_info()
        text = f"{len(gpus)} x {torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}"
        yield Finding("ok", "GPUs", f"{text}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free on the first")


def check_config(config: Path, project: Project) -> Iterator[Finding]:
    """Whether all files that the config names can be read, and trainings fit the cluster's nodes."""
    try:
        read_named_files(project)
        project.check_cluster()
    except (ValueError, OSError) as error:
        yield Finding("problem", str(config), str(error))
        return
    counts = f"{len(project.experiments)} experiments, {len(project.benchmarks)} benchmarks"
    yield Finding("ok", str(config), f"{counts}; every file that it names can be read")


def check_disk() -> Iterator[Finding]:
    """Free bytes and files of where the project lies, and of where programs put temporary files."""
    for name, folder in {"project": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}.items():
        about, free = f"disk of {name}", shutil.disk_usage(folder).free
        facts = os.statvfs(folder)
        text = f"{free / 1e9:.1f} GB free in {folder}"
        if free < LOW_DISK:
            yield Finding("problem", about, f"{text}: make room, or jobs fail when they write")
        elif facts.f_files and facts.f_favail < LOW_FILES:
            yield Finding("problem", about, f"only {facts.f_favail} more files can be made in {folder}: remove some")
        elif free < LITTLE_DISK and name == "project":
            yield Finding("note", about, f"{text}; `omnitune plan OPTIONS` says what a training takes")
        else:
            yield Finding("ok", about, text)


def check_file_system() -> Iterator[Finding]:
    """Whether the project's file system has locks, and the time that this machine has."""
    folder = Path.cwd()
    about, kind = "file system", file_system_of(folder)
    if kind in MEMORY_FILE_SYSTEMS:
        yield Finding("problem", about, f"{folder} is on {kind}, in this machine's memory: move the project to a disk")
        return
    path = folder / f".doctor-{os.getpid()}.lock"
    try:
        before = time.time()
        with lock(path, "held"):
            skew = path.stat().st_mtime - before
    except (ValueError, OSError) as error:
        yield Finding(
            "problem", about, f"{folder} ({kind}): {error} Trainings and Snakemake need a folder to write and lock."
        )
        return
    if abs(skew) > CLOCK_SECONDS:
        text = (
            f"{folder} ({kind}): files are dated {skew:+.0f} s from this machine's clock, by which jobs run again: "
            "set it"
        )
        yield Finding("problem", about, text)
    else:
        yield Finding("ok", about, f"{folder} ({kind}): locks work, times agree")


def file_system_of(folder: Path) -> str:
    """Its type, such as ext4, nfs4 or lustre."""
    kinds = {}
    with suppress(OSError):
        kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((kinds[path] for path in (folder, *folder.parents) if path in kinds), "unknown")
