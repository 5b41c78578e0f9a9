"""Sequences of edits in dry runs: after each of them the plan is what a model of the graph, without Snakemake, says."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from helpers.edits import EDITS, Edit
from helpers.graph_model import Graph, expected, refused
from helpers.lab import first_lab, write_lab
from helpers.planner import Planner
from helpers.workplace import Workplace

pytestmark = pytest.mark.workflow

EXAMPLES = int(os.environ.get("OMNITUNE_GRAPH_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def planner(lab_run: Workplace) -> Iterator[Planner]:
    made = Planner(lab_run.root)
    yield made
    made.close()


def shards_of(root: Path) -> dict[str, list[str]]:
    return {
        dataset: sorted(path.stem for path in (root / f"prepared/{dataset}/validation/shards").glob("*.jsonl"))
        for dataset in ("a", "b")
    }


@seed(int(os.environ.get("OMNITUNE_GRAPH_SEED", "0")))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(edits=st.lists(EDITS, min_size=1, max_size=5))
def test_plans_after_edits(
    lab_run: Workplace, planner: Planner, tmp_path_factory: pytest.TempPathFactory, edits: list[Edit]
) -> None:
    root = tmp_path_factory.mktemp("edited") / "project"
    shutil.copytree(lab_run.root, root, symlinks=True, copy_function=os.link)
    finished, lab, lost = first_lab(), first_lab(), set[str]()
    before = Graph(finished, shards_of(root))
    try:
        for edit in edits:
            edit.apply(lab, root)
            write_lab(lab, root)
            lost |= {edit.lose} if edit.lose else set()
            plan = planner.plan(root)
            note(f"{edit}: exit code {plan.code}, {sorted(plan.jobs)}")
            stopped = refused(dict.fromkeys(finished.experiments, finished), lab)
            if stopped:
                assert plan.code == 1 and not plan.jobs, plan.output[-3000:]
                assert "Traceback" not in plan.output
                assert all(f"experiments/{name}: was trained otherwise" in plan.output for name in stopped)
                continue
            assert plan.code == 0, plan.output[-3000:]
            wanted = expected(before, Graph(lab, shards_of(root)), lost)
            assert set(plan.jobs) == wanted, (
                f"after {edits[: edits.index(edit) + 1]}\nplanned and not expected: {sorted(plan.jobs - wanted)}\n"
                f"expected and not planned: {sorted(wanted - plan.jobs)}\n{plan.output[-2500:]}"
            )
    finally:
        shutil.rmtree(root.parent)
