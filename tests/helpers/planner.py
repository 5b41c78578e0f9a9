"""Many dry runs in a short time: Snakemake is imported once, and each plan is made by a fork of that process.

As a program it is the one that imports and forks: a line of JSON ({"root", "arguments", "output"}) in, an
exit code out.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.workplace import TARGETS


@dataclass(frozen=True)
class Plan:
    """What a dry run has said.

    Attributes:
        code: its exit code.
        jobs: (rule, its wildcards by name) of each job, target rules left out.
        reasons: what it says of the reason, by job.
        output: all that it printed.
    """

    code: int
    jobs: frozenset[tuple[str, tuple[tuple[str, str], ...]]]
    reasons: dict[tuple[str, tuple[tuple[str, str], ...]], str]
    output: str


JOB = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):\n((?:    .*\n)+)", re.MULTILINE)


def read_plan(code: int, output: str) -> Plan:
    """From the output of a dry run or of a run."""
    reasons = {}
    for match in JOB.finditer(output):
        lines = dict(line.strip().partition(": ")[::2] for line in match[2].splitlines())
        wildcards = dict(pair.split("=", 1) for pair in lines.get("wildcards", "").split(", ") if pair)
        if match[1] not in TARGETS:
            reasons[match[1], tuple(sorted(wildcards.items()))] = lines.get("reason", "")
    return Plan(code, frozenset(reasons), reasons, output)


class Planner:
    """Plans in folders of projects that are copies of one another: they share the code that has been imported."""

    def __init__(self, project: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(project)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def plan(self, root: Path, *arguments: str) -> Plan:
        """`snakemake --dry-run ARGUMENTS` in a folder."""
        output = root.parent / "plan.log"
        request = {"root": str(root), "arguments": ["--dry-run", *arguments], "output": str(output)}
        assert self._server.stdin and self._server.stdout
        print(json.dumps(request), file=self._server.stdin)
        code = int(self._server.stdout.readline())
        return read_plan(code, output.read_text())

    def close(self) -> None:
        """Ends the process."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(30)


def _serve(project: Path) -> None:
    os.environ["NO_COLOR"] = "1"
    sys.path.insert(0, str(project / "workflow"))
    from snakemake.cli import main

    import omnitune.refusals
    import omnitune.survey  # noqa: F401  (what the Snakefile imports)

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_plan(main, request))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _plan(main: Any, request: dict[str, Any]) -> int:
    handle = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(handle, number)
    os.chdir(request["root"])
    sys.argv = ["snakemake", *request["arguments"]]
    try:
        main()
    except SystemExit as end:
        code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        return code if isinstance(code, int) else int(code is not None)
    return 0


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
