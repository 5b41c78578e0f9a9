"""What several tests need: a copy of the project to run in, and snakemake as a user calls it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
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
        """How many jobs of each rule a run would start, without target rules."""
        output = self.snakemake("--dry-run", "--quiet", "progress", *arguments)
        counts: dict[str, int] = {}
        for line in output.splitlines():
            words = line.split()
            if len(words) == 2 and words[1].isdigit():
                counts[words[0]] = int(words[1])
        targets = {"total", "all", "validate", "shard", "train", "convert", "evaluate", "report"}
        return {rule: count for rule, count in counts.items() if rule not in targets}

    def edit(self, file: str, change: Callable[[dict], None]) -> None:
        """Changes a YAML file of the project."""
        path = self.root / file
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def copy_to(self, target: Path) -> "Workplace":
        """The same state in another folder."""
        shutil.copytree(self.root, target, symlinks=True)
        return Workplace(target)


def _path(environment: dict[str, str]) -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def new_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    """Makes a fresh copy of the project."""

    def make(name: str) -> Workplace:
        root = tmp_path_factory.mktemp(name)
        for entry in TRACKED:
            source = ROOT / entry
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
                shutil.copytree(source, root / entry, ignore=ignored)
            else:
                shutil.copy2(source, root / entry)
        return Workplace(root)

    return make
