"""Asks an advisory service about the packages of a lock file: `python tests/audit_packages.py requirements.lock`.

A known weakness is an error. Where no service answers, one line says so, and that is none.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 120  # for all packages together
COMMAND = [
    "pip-audit",
    "--no-deps",
    "--disable-pip",
    "--progress-spinner",
    "off",
    "--timeout",
    "10",
    "--format",
    "json",
]


def audit(lock: str, more: Sequence[str] = (), seconds: float = SECONDS) -> int:
    """Exit code 1 where a package has a known weakness, else 0; `more` are further arguments of pip-audit."""
    try:
        done = subprocess.run(
            [*COMMAND, "--requirement", lock, *more], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return _not_audited(f"the advisory service has not answered within {seconds:g} seconds")
    except FileNotFoundError:
        return _not_audited("pip-audit is not installed")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return _not_audited((done.stderr.strip().splitlines() or ["pip-audit says nothing"])[-1])
    found = [
        f"{package['name']} {package['version']}: {weakness['id']}, "
        f"mended in {', '.join(weakness['fix_versions']) or 'no version'}"
        for package in packages
        for weakness in package.get("vulns", ())
    ]
    print(*found, sep="\n", end="\n" * bool(found))
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        _not_audited("the service knows none of them" if len(skipped) == len(packages) else ", ".join(skipped))
    return int(bool(found))


def _not_audited(why: str) -> int:
    print(f"not audited: {why}")
    return 0


if __name__ == "__main__":
    raise SystemExit(audit(*sys.argv[1:2], sys.argv[2:]))
