"""How far experiments are, by what is there: whole, half-written, damaged, or of runs that were killed."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from helpers.projects import changed, project, write
from omnitune.project import Project
from omnitune.records import INCOMPLETE, record_path
from omnitune.status.collect import ExperimentStatus, collect_status, duration
from omnitune.status.jobs import read_jobs
from omnitune.training.progress import TAIL_BYTES, read_progress

pytestmark = pytest.mark.unit

METRICS = Path("experiments/x/logs/metrics.jsonl")
TRAINED = "experiments/x/train.json"
LOG = """
SNAKEMAKE
  Host: elsewhere
[Thu Nov 26 21:20:19 2026]
Error in rule train_experiment:
    message: None
    jobid: 22
    input: experiments/x/identity.json
    output: experiments/x/train.json
    log: logs/train_experiment/x.log (check log file(s) for error details)
[Thu Nov 26 21:20:20 2026]
Finished jobid: 46 (Rule: shard_dataset)
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An experiment `x` whose data is prepared."""
    monkeypatch.chdir(tmp_path)
    loaded = project(tmp_path, changed())
    write(Path("resources/pretrained/demo/manifest.json"), "{}")
    for source in loaded.sources["mix"]:
        write(Path(f"prepared/mix/validation/sources/{source}/samples.parquet"), "")
        write(Path(f"prepared/mix/validation/shards/{source}-00000.jsonl"), "")
        write(Path(f"prepared/mix/shards/{source}-00000.parquet"), "")
    write(Path("prepared/mix/validation/summary.json"), "{}")
    write(Path("prepared/mix/shards/index.parquet"), "")
    return loaded


def the(found: Project) -> ExperimentStatus:
    return collect_status(found, ["x"])[0]


def step(number: int, **figures: float | None) -> str:
    return json.dumps({"step": number, "loss": 0.5, "seconds": 2.0, "samples_per_second": 8.0, **figures}) + "\n"


def start(output: str, number: str | None = None) -> None:
    """What Snakemake notes of a job that it has started."""
    write(INCOMPLETE / record_path(output), json.dumps({"external_jobid": number}))


def test_stages_follow_the_files(found: Project) -> None:
    steps = found.experiments["x"].train.max_train_steps
    assert (the(found).stage, the(found).state) == ("train", "open")
    Path("prepared/mix/shards/index.parquet").unlink()
    shards = 1 + len(found.sources["mix"])
    assert (the(found).stage, the(found).done, the(found).total) == ("shard", shards - 1, shards)
    write(Path("prepared/mix/shards/index.parquet"), "")
    write(Path(TRAINED), json.dumps({"final_step": steps}))
    assert the(found).stage == "convert"
    write(Path(TRAINED), json.dumps({"final_step": steps - 1}))  # more steps were asked for since
    assert the(found).stage == "train"


def test_a_training_says_its_pace(found: Project) -> None:
    steps = found.experiments["x"].train.max_train_steps
    write(
        METRICS, step(1, loss=0.75) + step(2, loss=None) + json.dumps({"step": 2, "val_loss": 0.4}) + "\n" + '{"step"'
    )
    status = the(found)
    assert (status.state, status.step, status.loss, status.val_loss) == ("running", 2, 0.75, 0.4)
    assert (status.samples_per_second, status.seconds_left) == (8.0, 2.0 * (steps - 2))
    long_ago = time.time() - 7200
    os.utime(METRICS, (long_ago, long_ago))
    assert the(found).state == "open"
    start(TRAINED)
    write(Path(".snakemake/locks/0.input.lock"), "")
    assert (the(found).state, the(found).notes) == ("running", ("no step for 2:00:00",))


def test_the_last_rows_of_a_long_log_are_enough(tmp_path: Path) -> None:
    rows = 2 * TAIL_BYTES // len(step(1))
    progress = read_progress(write(tmp_path / "metrics.jsonl", "".join(map(step, range(1, rows + 1)))))
    assert progress is not None
    assert (progress.step, progress.rows) == (rows, 100)


def test_jobs_run_wait_stop_and_fail(found: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(TRAINED)
    assert (the(found).state, the(found).running) == ("stopped", 0)  # nobody holds the lock
    squeue = write(tmp_path / "bin/squeue", "#!/bin/sh\necho '17|PENDING|Priority'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    start(TRAINED, "17")
    assert (the(found).state, the(found).waiting, the(found).notes) == ("waiting", 1, ("in the queue: Priority",))
    squeue.write_text("#!/bin/sh\necho '17|RUNNING|None'\n")
    assert (the(found).state, the(found).running) == ("running", 1)
    (INCOMPLETE / record_path(TRAINED)).unlink()
    write(Path(".snakemake/log/2026-11-26T1.snakemake.log"), LOG)
    write(Path("logs/train_experiment/x.log"), "step 1\nError: the disk is full\n")
    assert (the(found).state, the(found).failed, the(found).notes) == ("failed", 1, ("the disk is full",))
    write(Path(".snakemake/log/2026-11-26T2.snakemake.log"), "a newer run, which has not got there\n")
    assert the(found).state == "open"


def test_damaged_files_are_left_out(found: Project) -> None:
    """Cut off at any place or changed in some bytes: never an exception."""
    write(METRICS, step(1) + step(2))
    write(Path(TRAINED), json.dumps({"final_step": 10}))
    write(Path("experiments/other/options.yml"), changed(name="other"))
    write(Path(".snakemake/log/2026-11-26T1.snakemake.log"), LOG)
    start(TRAINED, "17")
    damaged = [METRICS, Path(TRAINED), Path("experiments/other/options.yml"), INCOMPLETE / record_path(TRAINED)]
    damaged.append(Path(".snakemake/log/2026-11-26T1.snakemake.log"))
    draw = random.Random(0)
    for path in damaged:
        whole = path.read_bytes()
        cases = [whole[: draw.randrange(len(whole))] for _ in range(6)]
        cases += [b"[" * 5_000, b"\xff\x00" + whole[2:], b"null", b"[1]\n{}"]
        for content in cases:
            path.write_bytes(content)
            names = {each.experiment for each in collect_status(found)}
            assert names == {*found.experiments, "other"}, content[:50]
        path.write_bytes(whole)
    write(INCOMPLETE / "no record", "")
    read_jobs()


@pytest.mark.parametrize("content", ["5", "", "{}", '{"final_step": "x"}', "[" * 5_000])
def test_a_training_with_a_damaged_manifest_does_not_run(found: Project, content: str) -> None:
    """Its last rows are as young as those of one that runs."""
    write(METRICS, step(1) + step(2))
    assert (the(found).state, the(found).running) == ("running", 1)
    write(Path(TRAINED), content)
    [note] = the(found).notes
    assert note.startswith(f"{TRAINED}: ") and note.endswith(f"snakemake --cores 2 --force {TRAINED}")
    assert (the(found).stage, the(found).state, the(found).running) == ("train", "open", 0)


def test_names_that_are_not_there(found: Project) -> None:
    with pytest.raises(ValueError, match="'y': there is no such experiment; known: x"):
        collect_status(found, ["y"])


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7.4, 3600, 200_000)] == ["0:00:07", "1:00:00", "2 d 7 h"]
