"""Edits in real runs: what runs has a reason, nothing is left undone, and the results are those of a fresh folder."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from helpers.edits import EDITS, Edit, append_row, change_row, lose, remove_row, set_key, start_over, third_experiment
from helpers.graph_model import refused, refused_later, start_of, weights_facts
from helpers.lab import Lab, draw_images, first_lab, write_lab
from helpers.planner import read_plan
from helpers.workplace import Workplace, copy_project

pytestmark = pytest.mark.workflow

SEQUENCES = int(os.environ.get("OMNITUNE_GRAPH_RUNS", "0"))
COMPARED = (
    "prepared/*/validation/**/*.jsonl",
    "prepared/*/validation/**/*.sha256",
    "prepared/*/shards/*.tar",
    "prepared/*/shards/digests/*",
    "prepared/*/encoded/demo/*.tar",
    "resources/pretrained/demo/manifest.json",
    "resources/benchmarks/*/*.json",
    "experiments/*/identity.json",
    "experiments/*/checkpoint-*/transformer*/*",
    "experiments/*/evaluation/*/*/images/*.png",
    "experiments/*/evaluation/*/*/*.json*",
)


def contents(root: Path) -> dict[str, str]:
    """Hash of each file that a run leaves and that does not depend on times."""
    paths = {path for pattern in COMPARED for path in root.glob(pattern) if path.is_file()}
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def all_contents(root: Path) -> dict[str, str]:
    """Hash of each file but Snakemake's own."""
    files = (path for path in root.rglob("*") if path.is_file() and not {".snakemake", "workflow"} & set(path.parts))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fresh_run(lab: Lab, root: Path) -> Workplace:
    """The same Lab, run in an empty folder."""
    root.mkdir(parents=True)
    place = copy_project(root)
    shutil.rmtree(root / "config")
    write_lab(lab, root)
    draw_images(root)
    place.snakemake()
    return place


class History:
    """A place, what is written there, and what was written when each experiment was trained, and its start."""

    def __init__(self, place: Workplace) -> None:
        self.place, self.lab = place, first_lab()
        self.trained: dict[str, Lab] = {}
        self.starts: dict[str, Lab | None] = {}
        self._note_trained()

    def do(self, *edits: Edit) -> None:
        """Edits, written down."""
        for edit in edits:
            edit.apply(self.lab, self.place.root)
        write_lab(self.lab, self.place.root)

    def _note_trained(self) -> None:
        for name in self.lab.experiments:
            old, start = self.trained.get(name), start_of(self.lab, name)
            if old is None or weights_facts(old, name) != weights_facts(self.lab, name) or old.rows != self.lab.rows:
                self.trained[name] = self.lab.copy()
            self.starts[name] = self.trained.get(start[0]) if start else None

    def _on_other_weights(self, name: str) -> bool:
        start = start_of(self.lab, name)
        return bool(start and name in self.starts and self.starts[name] is not self.trained.get(start[0]))

    def run(self) -> bool:
        """Runs: each job must have had a reason of its own, and nothing may be left to do. False if refused."""
        before = all_contents(self.place.root)
        early = refused(self.trained, self.lab)
        late = refused_later(self.trained, self.lab) | set(filter(self._on_other_weights, self.lab.experiments))
        late = {name for name in late if self.lab.options[name].get("resume_from_checkpoint", "latest") is not None}
        done = self.place.run("snakemake", "--cores", "2", "--rerun-incomplete")
        output = done.stdout + done.stderr
        after = all_contents(self.place.root)
        assert "Traceback" not in output, output[-3000:]
        if early or late:
            assert done.returncode == 1, output[-6000:]
            names = early or late
            assert any(f"experiments/{name}: was trained otherwise" in output for name in names), output[-6000:]
            lost = {path for path in before if path not in after}
            assert not {path for path in lost if path.endswith(("train.json", "safetensors", "index.html"))}
            if early:
                assert {path for path in before if after.get(path) != before[path]} == set(), "nothing has changed"
            return False
        assert done.returncode == 0, output[-6000:]
        self._require_reasons(before, after, output)
        self._note_trained()
        assert "Nothing to be done" in self.place.snakemake()
        return True

    @staticmethod
    def _require_reasons(before: dict[str, str], after: dict[str, str], output: str) -> None:
        for name, reason in read_plan(0, output).reasons.items():
            named = {word.rstrip(",;") for word in reason.split()}
            changed = any(before.get(path) != after.get(path) for path in named if path in after)
            own = any(words in reason for words in ("Params have changed", "Set of input files", "Missing output"))
            closes = name[0] in {"validate_dataset", "index_dataset", "prepare_training", "score_images"}
            assert own or changed or closes, f"{name} ran without a reason: {reason}\n{output[-5000:]}"

    def require_as_fresh(self, root: Path) -> None:
        """What is there is what a run of the same in an empty folder leaves."""
        wanted, found = contents(fresh_run(self.lab, root).root), contents(self.place.root)
        assert {path for path in wanted if found.get(path) != wanted[path]} == set()


def test_rows_for_a_trained_experiment_and_a_new_one(lab_run: Workplace, tmp_path: Path) -> None:
    """What once left the new experiment untrained, with exit code 0, and the trained one without its train.json."""
    history = History(lab_run.copy_to(tmp_path / "project"))
    root, before = history.place.root, all_contents(history.place.root)
    for edit in (append_row("b1"), third_experiment("demo", "b")):
        history.do(edit)
        output = history.place.snakemake("train", ok=False)
        assert "experiments/two: was trained otherwise" in output and "b1: 12 -> 13 rows" in output
        assert (root / "experiments/two/train.json").is_file()
        assert not (root / "experiments/three").exists()
    history.do(remove_row("b1"))
    assert history.run()
    after = all_contents(root)
    assert (root / "experiments/three/train.json").is_file()
    changed = {path for path in before if after.get(path) != before[path] and not path.startswith(("logs/", "config/"))}
    assert changed == set(), "of the others nothing has changed"


def test_one_thing_after_another(lab_run: Workplace, tmp_path: Path) -> None:
    history = History(lab_run.copy_to(tmp_path / "project"))
    history.do(lose("prepared/b/shards/b1-00001.tar"), lose("prepared/b/validation/rejected.jsonl"))
    assert history.run()
    history.do(set_key("train", "learning_rate", 0.002, "two"))
    assert not history.run()
    history.do(start_over("two", None), lose("experiments/one/checkpoint-4/transformer/conversion.json"))
    assert history.run()


def test_other_rows_of_the_same_number_are_refused_once_they_are_validated(lab_run: Workplace, tmp_path: Path) -> None:
    """And undone, there is no more to do than to prepare the data again: what was trained is there."""
    history = History(lab_run.copy_to(tmp_path / "project"))
    history.do(change_row("b1"))
    assert not history.run()
    log = (history.place.root / "logs/prepare_training/two.log").read_text()
    assert "b1: other content in its 12 samples" in log
    history.lab.rows["b1"] = first_lab().rows["b1"]
    history.do()
    done = history.place.run("snakemake", "--cores", "2")
    ran = {name for name, _ in read_plan(0, done.stdout + done.stderr).jobs}
    assert ran == {
        "validate_source",
        "validate_dataset",
        "shard_dataset",
        "index_dataset",
        "encode_dataset",
        "prepare_training",
    }


@pytest.mark.skipif(not SEQUENCES, reason="takes hours: set OMNITUNE_GRAPH_RUNS to the number of sequences")
@seed(int(os.environ.get("OMNITUNE_GRAPH_SEED", "0")))
@settings(
    max_examples=max(SEQUENCES, 1),
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.lists(EDITS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_random_sequences(
    lab_run: Workplace, tmp_path_factory: pytest.TempPathFactory, steps: list[list[Edit]]
) -> None:
    root = tmp_path_factory.mktemp("sequence")
    history = History(lab_run.copy_to(root / "project"))
    try:
        ran = False
        for edits in steps:
            history.do(*edits)
            ran = history.run()
        if ran:
            history.require_as_fresh(root / "fresh")
    finally:
        shutil.rmtree(root)


@pytest.mark.skipif(not SEQUENCES, reason="takes hours: set OMNITUNE_GRAPH_RUNS to the number of sequences")
def test_killed_runs(lab_run: Workplace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Snakemake and all of its jobs killed at a random moment after an edit: the next run ends as a fresh one does."""
    chance = random.Random(int(os.environ.get("OMNITUNE_GRAPH_SEED", "0")))
    for _ in range(SEQUENCES):
        root = tmp_path_factory.mktemp("killed")
        history = History(lab_run.copy_to(root / "project"))
        place = history.place
        history.do(append_row(chance.choice(["a1", "b1"])), start_over("one", None), start_over("two", None))
        program = [str(Path(sys.executable).parent / "snakemake"), "--cores", "2"]
        with (root / "log").open("w") as log:
            process = subprocess.Popen(program, cwd=place.root, stdout=log, stderr=log, start_new_session=True)
            time.sleep(chance.uniform(4, 60))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(2)
        place.snakemake("--unlock")
        place.snakemake("--rerun-incomplete")
        assert "Nothing to be done" in place.snakemake()
        history.require_as_fresh(root / "fresh")
        shutil.rmtree(root)
