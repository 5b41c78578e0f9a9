"""Two nodes with addresses of their own: the same weights as one, one message for all, and nobody left alone."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.networks import ADDRESSES, can_make_namespaces, two_nodes
from helpers.trainings import (
    kill,
    largest_difference,
    log_of,
    ranks,
    rows,
    start_training,
    train,
    wait_for,
    write_options,
)
from helpers.workplace import Workplace

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces take root and iproute2"),
]


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, ...]]]:
    with two_nodes() as prefixes:
        yield prefixes


def start_nodes(place: Workplace, nodes: list[tuple[str, ...]], names: tuple[str, str], port: int) -> list[Any]:
    """One `omnitune train` on each node, as a person types it there."""
    where = ["--world_size", "2", "--master_addr", ADDRESSES[0], "--master_port", str(port)]
    return [
        start_training(place, name, *where, f"--rank={rank}", prefix=prefix)
        for rank, (name, prefix) in enumerate(zip(names, nodes, strict=True))
    ]


@pytest.mark.parametrize(
    ("name", "keys"),
    [("fsdp", {"batch_size": 4}), ("hsdp", {"batch_size": 2, "parallelism": "hsdp", "hsdp_shard_size": 2})],
)
def test_weights_of_one_node(mixed: Workplace, nodes: list[tuple[str, ...]], name: str, keys: dict) -> None:
    train(mixed, f"{name}_one", train=keys)
    write_options(mixed, f"{name}_two", train={**keys, "hsdp_shard_size": None})  # null: replicas are nodes
    processes = start_nodes(mixed, nodes, (f"{name}_two", f"{name}_two"), 29611)
    assert [process.wait(timeout=240) for process in processes] == [0, 0], log_of(mixed, f"{name}_two")[-4000:]
    assert f"strategy {name}, {8 // keys['batch_size']} processes" in log_of(mixed, f"{name}_two")
    folders = [mixed.root / f"experiments/{name}_{number}/checkpoint-20" for number in ("one", "two")]
    assert largest_difference(*folders) == 0


def test_nodes_with_different_options(mixed: Workplace, nodes: list[tuple[str, ...]]) -> None:
    """One message on each node that says what differs, and an end at once."""
    write_options(mixed, "right")
    write_options(mixed, "wrong", train={"learning_rate": 0.5})
    processes = start_nodes(mixed, nodes, ("right", "wrong"), 29612)
    assert [process.wait(timeout=90) for process in processes] == [1, 1]
    for name in ("right", "wrong"):
        log = log_of(mixed, name)
        assert log.count("the processes were started with different things") == 1
        assert "train.learning_rate: 0.001 (process 0) and 0.5 (process 1)" in log
        assert "Traceback" not in log
    assert not (mixed.root / "experiments/right/checkpoint-10").exists()


def test_process_that_dies_on_one_node(mixed: Workplace, nodes: list[tuple[str, ...]]) -> None:
    """Takes those of both nodes with it within seconds; with restarts, both go on by themselves."""
    train(mixed, "node_whole", train={"max_train_steps": 40})
    write_options(mixed, "node_dies", train={"max_train_steps": 40, "max_restarts": 3})
    processes = start_nodes(mixed, nodes, ("node_dies", "node_dies"), 29613)
    assert wait_for(lambda: len(rows(mixed, "node_dies")) > 12, processes[0])
    before = ranks(mixed, "node_dies")
    kill(before[-1])
    began = time.monotonic()
    assert wait_for(lambda: not set(before) & set(ranks(mixed, "node_dies")), processes[0])
    assert time.monotonic() - began < 10
    assert [process.wait(timeout=240) for process in processes] == [0, 0], log_of(mixed, "node_dies")[-4000:]
    assert "it goes on from its newest checkpoint (2 restarts left)" in log_of(mixed, "node_dies")
    folders = [mixed.root / f"experiments/{name}/checkpoint-40" for name in ("node_whole", "node_dies")]
    assert largest_difference(*folders) == 0
