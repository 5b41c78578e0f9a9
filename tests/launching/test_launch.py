"""How a training is started: the command of each node, how processes share the work, what they must agree in."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.tiny import OPTIONS
from omnitune.config import ExperimentOptions
from omnitune.distributed.layout import Layout
from omnitune.distributed.parallel import SharedError, gather, require_agreement, together
from omnitune.distributed.processes import Topology, interface_towards, launch_environment
from omnitune.distributed.stopping import STOP_SIGNALS
from omnitune.launching.launch import launch_command
from omnitune.launching.strategy import choose_layout
from omnitune.training.inputs import TrainingFiles
from omnitune.training.nonfinite import NonFinite

pytestmark = pytest.mark.unit

FILES = TrainingFiles(*(Path(name) for name in ("c", "b", "t", "i", "e", "o")))


def options(**train: object) -> ExperimentOptions:
    return ExperimentOptions.model_validate({**OPTIONS, "train": {**OPTIONS["train"], **train}})


@pytest.mark.parametrize(
    ("train", "topology", "expected"),
    [
        ({}, Topology(1), Layout("single", 1, 1)),
        ({}, Topology(2), Layout("fsdp", 2, 2)),
        ({"parallelism": "ddp"}, Topology(2), Layout("ddp", 2, 1)),
        ({"parallelism": "hsdp"}, Topology(8, nodes=2), Layout("hsdp", 16, 8)),
        ({"parallelism": "hsdp", "hsdp_shard_size": 4}, Topology(8), Layout("hsdp", 8, 4)),
    ],
)
def test_layouts(train: dict, topology: Topology, expected: Layout) -> None:
    assert choose_layout(options(**train), topology, FILES) == expected


@pytest.mark.parametrize(
    ("topology", "size"), [(Topology(4), None), (Topology(6), 4), (Topology(4), 8), (Topology(4), 1)]
)
def test_replicas_must_be_equal_and_several(topology: Topology, size: int | None) -> None:
    with pytest.raises(ValueError, match=r"train\.hsdp_shard_size"):
        choose_layout(options(parallelism="hsdp", hsdp_shard_size=size), topology, FILES)


@pytest.mark.parametrize("parallelism", ["ddp", "auto"])
def test_only_shards_are_offloaded(parallelism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where auto has found that every process can hold all parameters, and where there is one process."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("omnitune.distributed.layout._fitting", lambda *_: ("ddp", "it fits"))
    for processes in (1, 2):
        with pytest.raises(ValueError, match=r"train\.cpu_offload: true needs several processes"):
            choose_layout(options(parallelism=parallelism, cpu_offload=True), Topology(processes), FILES)
    sharded = options(parallelism="fsdp", cpu_offload=True)
    assert choose_layout(sharded, Topology(2), FILES) == Layout("fsdp", 2, 2)


def test_command_of_a_node() -> None:
    topology = Topology(8, nodes=2, rank=1, address="node0", port=29500)
    command = launch_command(topology, Layout("fsdp", 16, 16), options().train, FILES.arguments())
    text = " ".join(command)
    for words in (
        "--num_processes 16 --num_machines 2 --machine_rank 1",
        "--main_process_ip node0",
        "--main_process_port 29500",
        "--use_fsdp --fsdp_version 2",
        "--fsdp_transformer_layer_cls_to_wrap OmniGen2TransformerBlock",
        "--module omnitune.training.loop --config c",
        "--strategy fsdp",
        "--world_size 16 --shard_size 16",
    ):
        assert words in text
    ddp = launch_command(Topology(2), Layout("ddp", 2, 1), options().train, [])
    assert "--multi_gpu" in ddp and "--use_fsdp" not in ddp
    with pytest.raises(ValueError, match="--master_port: 0 is not allowed"):
        launch_command(Topology(1, nodes=2), Layout("fsdp", 2, 2), options().train, [])


def test_interface_of_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no such host") is None
    assert launch_environment(Topology(1, nodes=2))["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in launch_environment(Topology(2))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert launch_environment(Topology(1, nodes=2))["GLOO_SOCKET_IFNAME"] == "eth7"


def test_processes_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 3, "c": 0}]
    monkeypatch.setattr("omnitune.distributed.parallel.gather", lambda value: found)
    with pytest.raises(SharedError) as error:
        require_agreement(found[0])
    assert "b: 2 (process 0) and 3 (process 1, 2)" in str(error.value)
    assert "a:" not in str(error.value)


def test_one_fails_all_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gather("x") == ["x"]
    with pytest.raises(SharedError, match="mine"), together():
        raise ValueError("mine")
    monkeypatch.setattr("omnitune.distributed.parallel.gather", lambda value: [value, "another's"])
    with pytest.raises(SharedError, match="another's"), together():
        pass


def test_too_many_steps_that_are_not_finite() -> None:
    counter = NonFinite(limit=2)
    for step in (1, 2):
        counter.skipped(step, float("nan"), 1.0, 0.1)
    counter.finite()
    for step in (4, 5):
        counter.skipped(step, float("nan"), 1.0, 0.1)
    with pytest.raises(SharedError, match=r"step 6: .* the 3\. step in a row .*train\.max_nonfinite_steps: 2"):
        counter.skipped(6, float("nan"), 1.0, 0.1)
    assert counter.state() == {"nonfinite_in_row": 3, "skipped_steps": 5}


STOPPING = """
import sys, time
from omnitune.distributed.stopping import StopRequest
stop = StopRequest()
if sys.argv[1:]:
    stop.defer()
print("ready", flush=True)
while not stop.requested:
    time.sleep(0.01)
print("asked", flush=True)
sys.exit(0)
"""


def start_waiting(in_step: bool = True) -> subprocess.Popen[str]:
    """A process that was started as the launcher starts one: with the signals blocked from its first thread on."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *(["in a step"] if in_step else [])],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signals_set_a_flag(number: signal.Signals) -> None:
    """From anybody but the launcher, whose SIGTERM means that a process has died."""
    process = start_waiting()
    assert process.stdout is not None
    other = ["-c", f"import os; os.kill({process.pid}, {int(number)})"]
    subprocess.run([sys.executable, *other], check=True)
    assert process.stdout.readline() == "asked\n"
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_stop_before_the_first_step_ends_at_once() -> None:
    process = start_waiting(in_step=False)
    assert process.stdout is not None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 75
    process.stdout.close()


def test_sigterm_of_the_launcher_ends_at_once() -> None:
    process = start_waiting()
    assert process.stdout is not None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 3
    assert time.monotonic() - began < 5
    process.stdout.close()
