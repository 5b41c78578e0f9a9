"""`omnitune plan`: what it says of a training, from options and index alone."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from helpers.tiny import TRANSFORMER
from omnitune.cli import app
from omnitune.config import ExperimentOptions
from omnitune.config.sources import read_mixture
from omnitune.errors import ConfigError
from omnitune.flops import SampleTokens
from omnitune.loading.loader import TrainingBatches
from omnitune.loading.order import MixtureOrder
from omnitune.planning.inputs import Machine, PlanInputs
from omnitune.planning.plan import TrainingPlan, measured_rate, plan_training
from omnitune.planning.workload import histogram, longest_batch, read_workload
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import IndexRow

pytestmark = pytest.mark.unit

ROWS = {"edit": 40, "t2i": 20}


def row(source: str, number: int, text_tokens: int | None) -> dict[str, Any]:
    side = 256 + 64 * (number % 5)
    sides = [side, side] if source == "edit" else [side]
    tokens = (side // 16) ** 2
    sample = IndexRow(
        source=source,
        shard=0,
        key=f"{source}_{number:08d}",
        task_type=source,
        instruction="draw",
        tar=f"{source}-00000.tar",
        json_offset=0,
        json_size=10,
        image_offsets=[512] * len(sides),
        image_sizes=[10] * len(sides),
        widths=sides,
        heights=sides,
        output_tokens=tokens,
        input_tokens=tokens * (len(sides) - 1),
        sha256="0",
        tar_bytes=10,
        tar_sha256="0",
        text_tokens=text_tokens,
    )
    return vars(sample)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with options, mixture and index; no images, no weights."""
    monkeypatch.chdir(tmp_path)
    write_index(tmp_path, counted=True)
    entries = [{"path": f"{source}.jsonl", "type": source, "ratio": 0.5} for source in ROWS]
    (tmp_path / "mix.yml").write_text(yaml.safe_dump({"data": entries}))
    write_options(tmp_path)
    return tmp_path


def write_index(folder: Path, counted: bool) -> None:
    rows = [row(name, k, 10 + k if counted else None) for name, count in ROWS.items() for k in range(count)]
    path = folder / "prepared/mix/shards/index.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_options(folder: Path, data: dict[str, Any] | None = None, **train: Any) -> None:
    keys = {"global_batch_size": 8, "batch_size": 4, "max_train_steps": 50, "mixed_precision": "no"}
    content = {
        "name": "mine",
        "data": {"data_path": "mix.yml", "encode": True, "maximum_text_tokens": 100} | (data or {}),
        "model": {"pretrained_model_path": "demo", "arch_opt": {**TRANSFORMER, "axes_lens": [1024, 256, 256]}},
        "train": {**keys, "gradient_checkpointing": False, **train},
        "logger": {"checkpointing_steps": 10, "checkpoints_total_limit": 2},
    }
    (folder / "options.yml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "options.yml", *arguments])


def planned(
    project: Path, device_bytes: float, device: str = "cuda", nodes: int = 1, processes: int = 2
) -> TrainingPlan:
    options = ExperimentOptions.load(project / "options.yml")
    index, sources = ShardIndex.load("prepared/mix/shards/index.parquet"), read_mixture("mix.yml")
    machine = Machine(processes, nodes, device, int(device_bytes))
    encoder_bytes = 0 if options.data.encode else 5_000_000
    return plan_training(PlanInputs(options, TRANSFORMER, index, sources, machine, encoder_bytes), rate=None)


@pytest.mark.slow
def test_the_command_says_what_a_training_takes(project: Path) -> None:
    result = run("--samples_per_second", "2", "--gpu_memory_gb", "80")
    assert result.exit_code == 0, result.output
    text = re.sub(r"[ \n│]+", " ", result.output)
    for part in (
        "processes 2 x 80.0 GB, 1 node (GPU)",
        "samples per step 8 = 4 x 2 x 1",
        "steps 50, 400 samples",
        "rate 2 samples/s (--samples_per_second)",
        "at that rate 0.1 hours",
        "edit 40 50.00% 10.0 5.00",
        "t2i 20 50.00% 5.0 10.00",
        "1 reference 40 66.7%",
        "to 512x512 48 80.0%",
    ):
        assert part in text, part
    assert "2 kept" in text
    assert "Each of these changes" not in text
    assert "does not fit" not in text


@pytest.mark.slow
def test_the_rate_of_the_experiments_own_steps_is_taken(project: Path) -> None:
    assert measured_rate(project / "experiments/mine") is None
    logs = project / "experiments/mine/logs"
    logs.mkdir(parents=True)
    rows = [{"step": k, "samples_per_second": rate} for k, rate in enumerate([1, 400, 4, 4, 5])]
    lines = [json.dumps(content) for content in [*rows, {"step": 5, "validation_loss": 1}]]
    (logs / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "samp']))
    text = re.sub(r"[ \n│]+", " ", run().output)
    assert "rate 4 samples/s (median of 5 steps in experiments/mine/logs/metrics.jsonl)" in text
    assert "hours are not known" not in text


def test_the_largest_microbatch_is_what_the_loader_gives(project: Path) -> None:
    options = ExperimentOptions.load(project / "options.yml")
    index, sources = ShardIndex.load("prepared/mix/shards/index.parquet"), read_mixture("mix.yml")
    names = [source.name for source in sources]
    plan = MixtureOrder(index.sizes(names), [source.ratio for source in sources], options.seed)
    cut = {"seed": options.seed, "global_batch_size": 8, "batch_size": 4, "world_size": 2}
    dealt = [
        [
            SampleTokens(r.text_tokens or 0, (r.input_tokens,) if r.input_tokens else (), r.output_tokens)
            for _, _, r in TrainingBatches(index, plan, names, rank=rank, **cut).slots(step, 0)
        ]
        for step in range(50)
        for rank in range(2)
    ]
    totals = [sum(sample.total for sample in batch) for batch in dealt]
    workload = read_workload(options, index, sources, processes=2)
    assert workload.tokens.ravel().tolist() == totals
    assert workload.heaviest == dealt[totals.index(max(totals))]
    assert longest_batch(options, index, processes=2) == workload.heaviest
    assert workload.text_counted


@pytest.mark.slow
def test_instructions_that_were_not_counted_are_assumed_to_be_long(project: Path) -> None:
    write_index(project, counted=False)
    result = run("--gpu_memory_gb", "80")
    assert "100 (data.maximum_text_tokens) are assumed" in result.output.replace("\n", " ")
    assert all(sample.text == 100 for sample in planned(project, 80e9).workload.samples)


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_changes(project: Path) -> None:
    write_options(project, parallelism="ddp", data={"encode": False})
    enough = planned(project, 80e9)
    assert enough.fits
    assert not enough.remedies
    plan = planned(project, 0.9 * enough.memory.total)
    assert not plan.fits
    needs = {remedy.change: remedy.total for remedy in plan.remedies}
    assert list(needs) == [
        "train.gradient_checkpointing: true",
        "data.encode: true",
        "train.batch_size: 2 with train.gradient_accumulation_steps: 2",
        "train.batch_size: 2 with 4 processes",
        "train.parallelism: fsdp",
        "train.optimizer: adamw_8bit",
        "train.optimizer: adafactor",
        "train.lora_ft: true",
        "data.max_output_pixels: 131072",
    ]
    least = ("train.gradient_checkpointing: true", "train.batch_size: 2 with 4 processes")
    assert all(needs[change] < 0.7 * plan.memory.total for change in least)
    assert needs["train.parallelism: fsdp"] < plan.memory.total
    write_options(project, parallelism="auto", gradient_checkpointing=True)
    assert planned(project, 1e6).remedies[-1].change == "train.cpu_offload: true"


@pytest.mark.slow
def test_a_small_gpu_shows_the_changes(project: Path) -> None:
    write_options(project, global_batch_size=32, batch_size=32)
    text = re.sub(r"[ \n│]+", " ", run("--gpu_memory_gb", "0.5").output)
    assert "does not fit: a process needs" in text
    assert re.search(r"train.gradient_checkpointing: true [\d.]+ MB yes", text)


@pytest.mark.slow
def test_auto_is_explained(project: Path) -> None:
    write_options(project, parallelism="auto")
    plan = planned(project, 80e9)
    assert (plan.strategy, plan.reason[:10]) == ("ddp", "ddp needs ")
    assert planned(project, 1e6, nodes=2).strategy == "fsdp"
    write_options(project, global_batch_size=4)
    assert planned(project, 80e9, processes=1).strategy == "single"


def test_mistakes_are_named(project: Path) -> None:
    result = run("--nodes", "3")
    assert isinstance(result.exception, ValueError)
    assert "--nodes: 3 is not allowed, as the 2 processes" in str(result.exception)
    assert "snakemake --cores 2 shard" in str(run("--index", "none.parquet").exception)
    (project / "mix.yml").write_text(yaml.safe_dump({"data": [{"path": "other.jsonl", "type": "t2i"}]}))
    error = run().exception
    assert isinstance(error, ConfigError)
    assert "no samples of 'other'" in str(error)
    write_options(project, parallelism="hsdp")
    (project / "mix.yml").write_text(yaml.safe_dump({"data": [{"path": "t2i.jsonl", "type": "t2i"}]}))
    assert "train.hsdp_shard_size: 2 is not allowed with 2 processes on 1 node(s)" in str(run().exception)
    content = yaml.safe_load((project / "options.yml").read_text())
    del content["model"]["arch_opt"]
    (project / "options.yml").write_text(yaml.safe_dump(content))
    assert "config.json is missing and model.arch_opt is not set" in str(run().exception)
    assert run("--samples_per_second", "0").exit_code == 2


def test_histograms_count_everything() -> None:
    import numpy as np

    values = np.asarray([[1, 2, 3], [10, 11, 400]])
    counted = histogram(values)
    assert sum(count for _, count in counted) == 6
    assert counted[0] == ("1 - 50", 5)
    assert histogram(np.asarray([7, 7])) == [("7", 2)]
    assert sum(count for _, count in histogram(np.asarray([1, 2]))) == 2
