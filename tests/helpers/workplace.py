"""A copy of the project to run in, and snakemake as a user calls it."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TARGETS = {"all", "validate", "shard", "encode", "train", "convert", "evaluate", "report"}
JOB = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$", re.MULTILINE)
SHARED = 1_000_000  # bytes, from which on copies of a place share a file: weights and checkpoints
TRACKED = ("Snakefile", "config", "envs", "rules", "scripts", "workflow")


@dataclass(frozen=True)
class Workplace:
    """A copy of the project's files in a folder of its own, where commands run as a user types them."""

    root: Path

    def run(
        self, *command: str, environment: dict[str, str] | None = None, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program of this Python's environment, as in a shell; output as text."""
        return subprocess.run(
            command,
            cwd=self.root,
            env={**(environment or os.environ), **_path(environment or dict(os.environ))},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def snakemake(self, *arguments: str, cores: int = 2, ok: bool = True) -> str:
        """`snakemake --cores N ...`; gives its output, and fails the test if its exit code is not as expected."""
        done = self.run("snakemake", "--cores", str(cores), *arguments)
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, output[-6000:]
        return output

    def planned(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a dry run lists: those that run, and those that may, behind these."""
        return count_jobs(self.snakemake("--dry-run", *arguments))

    def ran(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule `snakemake --cores 2 ...` has run."""
        return count_jobs(self.snakemake(*arguments))

    def edit(self, file: str, change: Callable[[dict], None]) -> None:
        """Changes a YAML file of the project."""
        path = self.root / file
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def copy_to(self, target: Path) -> "Workplace":
        """The same state in another folder. Large files are shared: a test replaces one and does not write into it."""
        shutil.copytree(self.root, target, symlinks=True, copy_function=_copy)
        return Workplace(target)

    def replace(self, file: Path, content: bytes) -> None:
        """Changes a file that another copy of this place may share."""
        file.unlink()
        file.write_bytes(content)


def _copy(source: str, target: str) -> None:
    (os.link if Path(source).stat().st_size > SHARED else shutil.copy2)(source, target)


def count_jobs(output: str) -> dict[str, int]:
    """Jobs by rule, without target rules, from what Snakemake has printed."""
    return dict(Counter(rule for rule in JOB.findall(output) if rule not in TARGETS))


def _path(environment: dict[str, str]) -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}", "NO_COLOR": "1"}


def copy_project(root: Path) -> Workplace:
    """Copies the project's own files into an empty folder."""
    for entry in TRACKED:
        source = ROOT / entry
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
            shutil.copytree(source, root / entry, ignore=ignored)
        else:
            shutil.copy2(source, root / entry)
    return Workplace(root)
