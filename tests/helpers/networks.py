"""Two network namespaces with an address each, joined by a cable: what two machines are to each other."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.77.41.1", "10.77.41.2")


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def can_make_namespaces() -> bool:
    """Whether this user may; it takes root and iproute2."""
    if os.geteuid() != 0:
        return False
    name = f"omnitune-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextmanager
def two_nodes() -> Iterator[list[tuple[str, ...]]]:
    """Gives what to put before a command so that it runs on the first or the second node."""
    names = [f"omnitune-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in names:
            _ip("netns", "del", name, check=False)
