"""How a training is started: the command of each node, and how processes share the work."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import OPTIONS
from omnitune.config import ExperimentOptions
from omnitune.distributed.layout import Layout
from omnitune.distributed.processes import Topology
from omnitune.launching.launch import launch_command
from omnitune.launching.strategy import choose_layout
from omnitune.training.inputs import TrainingFiles

pytestmark = pytest.mark.unit

FILES = TrainingFiles(*(Path(name) for name in ("c", "b", "t", "i", "e", "o")))


def test_launchers_do_not_wait_for_torch() -> None:
    """Nor does `omnitune --help`: the model's libraries take eight seconds, and each process imports its own."""
    modules = "omnitune.cli, omnitune.launching.job, omnitune.status.show, omnitune.status.collect"
    code = f"import sys, {modules}; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


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
    monkeypatch.setattr("omnitune.launching.strategy._fitting", lambda *_: ("ddp", "it fits"))
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
        "--module omnitune.training --config c",
        "--strategy fsdp",
        "--world_size 16 --shard_size 16",
    ):
        assert words in text
    ddp = launch_command(Topology(2), Layout("ddp", 2, 1), options().train, [])
    assert "--multi_gpu" in ddp and "--use_fsdp" not in ddp
    with pytest.raises(ValueError, match="--master_port: 0 is not allowed"):
        launch_command(Topology(1, nodes=2), Layout("fsdp", 2, 2), options().train, [])
