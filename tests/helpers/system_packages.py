"""Tests of programs that come with the system: skipped where these lack, but never in continuous integration."""

import os

import pytest

INSTALLER = "tests/install-system-packages.sh"


def need(missing: list[str]) -> None:
    """Skips the test that calls this where programs are missing; fails it where CI or OMNITUNE_CI is set."""
    if not missing:
        return
    reason = f"needs {', '.join(missing)}: sudo bash {INSTALLER}"
    if os.environ.get("CI") or os.environ.get("OMNITUNE_CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
