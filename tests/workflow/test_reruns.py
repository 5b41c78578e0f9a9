"""What an edit reruns, with real Snakemake runs: just what depends on it."""

import hashlib
import json
from pathlib import Path

import pytest
from workplace import Workplace

pytestmark = pytest.mark.workflow

OPTIONS = "config/options/tiny.yml"
BENCHMARK = "config/benchmarks/tiny.yml"
EXPERIMENT = "experiments/tiny"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_leaves_what_the_design_says(finished: Workplace) -> None:
    root = finished.root
    for path in (
        "resources/pretrained/demo/model_index.json",
        "prepared/tiny/validation/samples.parquet",
        "prepared/tiny/validation/rejected.jsonl",
        "prepared/tiny/validation/summary.json",
        "prepared/tiny/shards/index.parquet",
        "prepared/tiny/shards/index.arrow",
        "prepared/tiny/encoded/demo/groups/edit-0000.parquet",
        "prepared/tiny/encoded/demo/edit-00000.tar",
        "prepared/tiny/encoded/demo/dropped.safetensors",
        f"{EXPERIMENT}/options.yml",
        f"{EXPERIMENT}/train.json",
        f"{EXPERIMENT}/logs/metrics.jsonl",
        f"{EXPERIMENT}/checkpoint-12/transformer/config.json",
        f"{EXPERIMENT}/checkpoint-12/transformer/diffusion_pytorch_model.safetensors",
        f"{EXPERIMENT}/evaluation/0/tiny/scores.json",
        f"{EXPERIMENT}/evaluation/12/tiny/generations.jsonl",
        f"{EXPERIMENT}/report/index.html",
    ):
        assert (root / path).is_file(), path
    assert list((root / EXPERIMENT / "logs/tensorboard").glob("events*"))
    images = list((root / EXPERIMENT / "evaluation/12/tiny/images").glob("*.png"))
    assert len(images) == 60
    train = json.loads((root / EXPERIMENT / "train.json").read_text())
    assert (train["strategy"], train["world_size"], train["checkpoints"]) == ("fsdp", 2, [4, 8, 12])
    log = (root / "logs/train_experiment/tiny.log").read_text()
    assert "strategy fsdp, 2 processes" in log
    assert "(50." in log, "the share of parameters that a process holds is logged"


def test_nothing_half_written_is_left(finished: Workplace) -> None:
    left = [p for p in finished.root.rglob("*") if p.suffix in {".tmp", ".partial"} and ".snakemake" not in p.parts]
    assert left == []


def test_second_run_has_nothing_to_do(workplace: Workplace) -> None:
    assert "Nothing to be done" in workplace.snakemake()


def test_evaluation_key_retrains_nothing(workplace: Workplace) -> None:
    workplace.edit(BENCHMARK, lambda c: c.update(num_inference_steps=3))
    assert workplace.planned() == {"generate_images": 2, "score_images": 2, "build_report": 1}


def test_check_needs_no_new_images(workplace: Workplace) -> None:
    workplace.edit(BENCHMARK, lambda c: c.update(check=None))
    assert workplace.planned() == {"score_images": 2, "build_report": 1}


def test_logging_key_retrains_nothing(workplace: Workplace) -> None:
    workplace.edit(OPTIONS, lambda c: c["logger"].update(log_with=None))
    assert workplace.planned() == {"build_report": 1}


def test_learning_rate_reshards_nothing(workplace: Workplace) -> None:
    """The old checkpoints are not gone on from, and not thrown away: the options have to say that training starts over."""
    weights = "checkpoint-12/transformer/diffusion_pytorch_model.safetensors"
    before = sha256(workplace.root / EXPERIMENT / weights)
    workplace.edit(OPTIONS, lambda c: c["train"].update(learning_rate=0.002))
    planned = workplace.planned()
    assert {"train_experiment", "convert_checkpoint", "generate_images", "score_images", "build_report"} == set(planned)
    output = workplace.snakemake("train", ok=False)
    assert "experiments/tiny: its checkpoints were trained under other options" in output
    assert "options.train.learning_rate: 0.001 -> 0.002" in output
    assert "set resume_from_checkpoint: null" in output
    assert "Traceback" not in output
    assert "train_experiment" in workplace.planned("convert"), (
        "the weights of the old training are not taken for new ones"
    )
    workplace.edit(OPTIONS, lambda c: c.update(resume_from_checkpoint=None))
    workplace.snakemake("convert")
    assert sha256(workplace.root / EXPERIMENT / "superseded-1" / weights) == before
    assert sha256(workplace.root / EXPERIMENT / weights) != before


def test_keys_that_change_no_weights_go_on(workplace: Workplace) -> None:
    """Length, logging, checkpointing and topology."""
    workplace.edit(OPTIONS, lambda c: c["logger"].update(checkpointing_steps=5, log_with=None))
    changed = {
        "max_train_steps": 14,
        "batch_size": 8,
        "parallelism": "ddp",
        "max_restarts": 1,
        "async_checkpoint": True,
    }
    workplace.edit(OPTIONS, lambda c: c["train"].update(changed))
    output = workplace.snakemake("train")
    assert "going on from experiments/tiny/checkpoint-12" in output
    assert "strategy single, 1 processes" in output


def test_pixel_limit_reshards(workplace: Workplace) -> None:
    workplace.edit(OPTIONS, lambda c: c["data"].update(max_output_pixels=2048))
    planned = workplace.planned()
    shards = len(list((workplace.root / "prepared/tiny/shards").glob("*.tar")))
    assert planned["shard_dataset"] == shards > 1
    assert planned["train_experiment"] == 1
    assert not {"validate_source", "validate_dataset", "prepare_demo_data", "prepare_pretrained"} & set(planned)


def test_lost_tar_is_rebuilt_alone_with_the_same_bytes(workplace: Workplace) -> None:
    tar = workplace.root / "prepared/tiny/shards/edit-00001.tar"
    before = sha256(tar)
    tar.unlink()
    assert workplace.planned() == {"shard_dataset": 1}
    workplace.snakemake()
    assert sha256(tar) == before
    assert "Nothing to be done" in workplace.snakemake()


def test_more_steps_go_on_from_the_last_checkpoint(workplace: Workplace) -> None:
    workplace.edit(OPTIONS, lambda c: c["train"].update(max_train_steps=14))
    output = workplace.snakemake("train")
    assert "going on from experiments/tiny/checkpoint-12" in output
    rows = (workplace.root / EXPERIMENT / "logs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 15))


@pytest.mark.parametrize(
    ("rule", "target", "expected"),
    [
        ("validate_source", "validate", {"validate_source", "validate_dataset"}),
        ("index_dataset", "shard", {"index_dataset"}),
        ("encode_dataset", "encode", {"encode_dataset"}),
        ("train_experiment", "train", {"train_experiment"}),
        ("convert_checkpoint", "convert", {"convert_checkpoint"}),
        ("score_images", "evaluate", {"score_images"}),
        ("build_report", "report", {"build_report"}),
    ],
)
def test_stages_can_be_forced_alone(workplace: Workplace, rule: str, target: str, expected: set[str]) -> None:
    assert set(workplace.planned(target, "--forcerun", rule)) == expected


def test_forced_stages_give_the_same_result(workplace: Workplace) -> None:
    weights = workplace.root / EXPERIMENT / "checkpoint-12/transformer/diffusion_pytorch_model.safetensors"
    scores = workplace.root / EXPERIMENT / "evaluation/12/tiny/scores.json"
    before = sha256(weights), sha256(scores)
    weights.unlink()
    workplace.snakemake("evaluate", "--forcerun", "convert_checkpoint", "score_images")
    assert (sha256(weights), sha256(scores)) == before


def test_snakemake_report_holds_ours(workplace: Workplace) -> None:
    workplace.snakemake("--report", "report.zip")
    assert (workplace.root / "report.zip").stat().st_size > 10_000


def test_without_benchmarks_the_weights_are_converted_all_the_same(workplace: Workplace) -> None:
    (workplace.root / EXPERIMENT / "checkpoint-12/transformer/conversion.json").unlink()
    assert workplace.planned("--config", "benchmarks=[]") == {"convert_checkpoint": 1, "build_report": 1}
