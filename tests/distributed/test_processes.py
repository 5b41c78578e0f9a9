"""What launched processes are given."""

import pytest

from omnitune.distributed.processes import Topology, interface_towards, launch_environment

pytestmark = pytest.mark.unit


def test_interface_of_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no such host") is None
    assert launch_environment(Topology(1, nodes=2))["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in launch_environment(Topology(2))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert launch_environment(Topology(1, nodes=2))["GLOO_SOCKET_IFNAME"] == "eth7"
