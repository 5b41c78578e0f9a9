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

from helpers.projects import changed
from helpers.tiny import TRANSFORMER
from omnitune.cli import app
from omnitune.config import ExperimentOptions
from omnitune.config.experiment.model import ArchOptions, ModelOptions
from omnitune.config.mixtures.sources import read_mixture
from omnitune.flops import SampleTokens
from omnitune.loading.loader import TrainingBatches
from omnitune.loading.order import MixtureOrder
from omnitune.planning.disk import DiskSpace, conversions_space, data_space
from omnitune.planning.inputs import Machine, PlanInputs
from omnitune.planning.measured import measured_hours
from omnitune.planning.plan import TrainingPlan, measured_rate, plan_training
from omnitune.planning.published import download_bytes, encoder_bytes, pipeline_bytes
from omnitune.planning.samples import AssumedSamples, planned_samples
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
    assert measured_rate("mine") is None
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
    write_options(project, global_batch_size=8, batch_size=8)
    text = re.sub(r"[ \n│]+", " ", run("--gpu_memory_gb", "0.15").output)
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
    assert "none.parquet is not there" in str(run("--index", "none.parquet").exception)
    (project / "mix.yml").write_text(yaml.safe_dump({"data": [{"path": "other.jsonl", "type": "t2i"}]}))
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


LIMITS = {"max_output_pixels": 1048576, "max_input_pixels": [1048576, 1048576, 589824, 262144], "max_side_length": 2048}


def write_limits(folder: Path, **others: Any) -> Path:
    """Lets the index say under which limits its shards were made."""
    path = folder / "prepared/mix/shards/index.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"limits": json.dumps({**LIMITS, **others})}), path)
    return path


def samples_of(project: Path, asked: bool = False) -> ShardIndex | AssumedSamples:
    data = ExperimentOptions.load(project / "options.yml").data
    return planned_samples(data, read_mixture("mix.yml"), Path("prepared/mix/shards/index.parquet"), asked)


def test_shards_of_other_limits_are_not_planned_from(project: Path) -> None:
    write_limits(project)
    assert isinstance(samples_of(project), ShardIndex)
    write_limits(project, max_output_pixels=4096)
    found = samples_of(project)
    assert isinstance(found, AssumedSamples)
    assert "other limits (data.max_output_pixels: 4096 there, 1048576 in the options)" in found.reason
    assert found.counts == ROWS
    edit, t2i = found.row("edit", 0), found.row("t2i", 0)
    assert (edit.widths, t2i.heights) == ([1024, 1024], [1024])
    assert (edit.output_tokens, edit.input_tokens, t2i.input_tokens) == (4096, 4096, 0)


def test_before_there_are_shards_the_limits_are_planned_from(project: Path) -> None:
    Path("prepared/mix/shards/index.parquet").unlink()
    Path("t2i.jsonl").write_text("{}\n\n{}\n{}")
    found = samples_of(project)
    assert isinstance(found, AssumedSamples)
    assert "there are no shards yet" in found.reason
    assert found.counts == {"edit": None, "t2i": 3}
    with pytest.raises(ValueError, match=r"--index: .* is not there"):
        samples_of(project, asked=True)
    entry = {"path": "other.jsonl", "type": "mixed"}
    Path("mix.yml").write_text(yaml.safe_dump({"data": [entry]}))
    write_options(project, data={"max_input_pixels": [1048576, 262144]})
    assert samples_of(project).row("other", 0).widths == [512] * 5 + [1024]  # type: ignore[attr-defined]
    write_index(project, counted=True)
    found = samples_of(project)
    assert isinstance(found, AssumedSamples)
    assert "has no samples of 'other'" in found.reason


@pytest.mark.slow
def test_a_plan_without_shards_says_so(project: Path) -> None:
    Path("prepared/mix/shards/index.parquet").unlink()
    text = re.sub(r"[ \n│]+", " ", run("--gpu_memory_gb", "80").output)
    assert "8 x 1,024" not in text
    for part in ("edit not known 50.00% not known", "planned from the limits of the options", "tars not known"):
        assert part in text, part


def test_disk_of_data_is_counted(project: Path) -> None:
    options = ExperimentOptions.load(project / "options.yml")
    index, sources = ShardIndex.load("prepared/mix/shards/index.parquet"), read_mixture("mix.yml")
    tars, encodings = data_space(options, TRANSFORMER, index, sources)
    assert tars.size == 2 * 10  # two tars
    rows = [index.row(name, number) for name, count in ROWS.items() for number in range(count)]
    latents = sum(row.output_tokens + row.input_tokens for row in rows) * 4 * TRANSFORMER["in_channels"] * 2
    texts = sum(row.text_tokens or 0 for row in rows) * TRANSFORMER["text_feat_dim"]
    assert encodings.size == 2 * (latents + texts)
    table = pq.read_table("prepared/mix/shards/index.parquet")
    pq.write_table(table.drop_columns(["text_tokens"]), "uncounted.parquet")
    uncounted = data_space(options, TRANSFORMER, ShardIndex.load("uncounted.parquet"), sources)
    longest = len(rows) * 100 * TRANSFORMER["text_feat_dim"]
    assert [space.size for space in uncounted] == [tars.size, 2 * (latents + longest)]
    Path("prepared/mix/shards/index.parquet").unlink()
    assert [space.size for space in data_space(options, TRANSFORMER, samples_of(project), sources)] == [None, None]


@pytest.mark.parametrize(
    ("lora", "convert", "pipeline", "size"),
    [
        (False, {}, None, 2 * 400),
        (False, {"formats": ["comfyui", "pipeline"], "dtype": "bf16"}, 1000, 2 * (200 + 200 + 1000)),
        (False, {"formats": ["extracted"], "extracted_rank": 8}, None, 2 * (400 + 3 * 4 * 8 * 5)),
        (True, {}, None, 2 * 12),
        (True, {"formats": ["comfyui", "merged"]}, None, 2 * (12 + 12 + 400)),
        (True, {"formats": ["pipeline"]}, None, None),
    ],
)
def test_disk_of_conversions_is_that_of_all_formats(
    lora: bool, convert: dict[str, Any], pipeline: int | None, size: int | None
) -> None:
    train = {"max_train_steps": 20, "lora_ft": lora}
    content = changed(train=train, val={"evaluate_checkpoints": "all"}, logger={"checkpointing_steps": 10})
    options = ExperimentOptions.model_validate({**content, "convert": convert})
    base = [DiskSpace("base model", pipeline, "")]
    assert conversions_space(options, parameters=100, trained=3, base=base, widths=5).size == size


def test_published_weights_are_known_before_they_are_there(tmp_path: Path) -> None:
    published = ModelOptions(
        pretrained_model_path="OmniGen2/OmniGen2",
        pretrained_vae_model_name_or_path="black-forest-labs/FLUX.1-dev",
        pretrained_text_encoder_model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct",
    )
    assert encoder_bytes(published, 2) == 4 * 83_819_683 + 2 * 3_085_938_688
    downloads = download_bytes(published)
    folder = pipeline_bytes(published, tmp_path / "none")
    assert downloads and folder
    assert 31e9 < downloads < 32e9  # the base with its own VAE and text encoder, and those in their place
    assert 23e9 < folder < 24e9
    other = published.model_copy(update={"pretrained_text_encoder_model_name_or_path": "somebody/else"})
    assert (encoder_bytes(other, 2), download_bytes(other), pipeline_bytes(other, tmp_path / "none")) == (0, None, None)
    (tmp_path / "weights").write_bytes(b"12345")
    assert pipeline_bytes(other, tmp_path) == 5
    assert download_bytes(ModelOptions(pretrained_model_path="demo")) == 0


def test_hours_are_foretold_of_measured_gpus_alone() -> None:
    published = ArchOptions.model_validate({}).model_dump()
    options = ExperimentOptions.model_validate(
        {"name": "x", "data": {"data_path": "mix.yml"}, "model": {"pretrained_model_path": "demo"}}
    )
    [found] = measured_hours(options, published, step_flops=989e12 * 0.236, processes=1)
    assert found.gpu == "H200"
    assert found.hours == pytest.approx(options.train.max_train_steps / 3600)  # a step a second
    assert measured_hours(options, {**published, **TRANSFORMER}, 1e15, 1) == []
    faster = options.model_copy(update={"train": options.train.model_copy(update={"gradient_checkpointing": False})})
    assert measured_hours(faster, published, 1e15, 1) == []
