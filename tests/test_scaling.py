"""docs/scaling.md: what it computes is what the code computes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", PROJECT / "benchmarks/scaling.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_that_are_computed(scaling: Any) -> None:
    page = (PROJECT / "docs/scaling.md").read_text()
    for _, columns, rows in (scaling.traffic(), scaling.checkpoints(), scaling.data()):
        for row in (columns, *rows):
            assert f"| {' | '.join(row)} |\n" in page


def test_what_nodes_receive_grows_with_microbatches_of_fsdp_alone(scaling: Any) -> None:
    assert scaling.node_bytes("fsdp", 1, 1) == scaling.node_bytes("hsdp", 1, 1) == 0
    assert scaling.node_bytes("fsdp", 8, 4) > scaling.node_bytes("fsdp", 8, 1) == scaling.node_bytes("hsdp", 8, 4)
