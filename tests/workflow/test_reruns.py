"""What an edit reruns, with real Snakemake runs: just what depends on it."""

import hashlib
import json
from pathlib import Path

import pytest

from helpers.workplace import Workplace

pytestmark = pytest.mark.workflow

OPTIONS = "config/options/tiny.yml"
BENCHMARK = "config/benchmarks/tiny.yml"
MIXTURE = "config/data/tiny.yml"
EXPERIMENT = "experiments/tiny"
WEIGHTS = "checkpoint-12/transformer/diffusion_pytorch_model.safetensors"
SCORES = "evaluation/12/tiny/scores.json"


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
        "prepared/tiny/shards/digests/edit-00000.sha256",
        "resources/benchmarks/tiny/protocol.json",
        "resources/benchmarks/tiny/scoring.json",
        f"{EXPERIMENT}/identity.json",
        f"{EXPERIMENT}/options.yml",
        f"{EXPERIMENT}/train.json",
        f"{EXPERIMENT}/logs/metrics.jsonl",
        f"{EXPERIMENT}/checkpoint-12/transformer/config.json",
        f"{EXPERIMENT}/checkpoint-12/transformer/diffusion_pytorch_model.safetensors",
        f"{EXPERIMENT}/evaluation/0/tiny/scores.json",
        f"{EXPERIMENT}/evaluation/12/tiny/generations.jsonl",
        f"{EXPERIMENT}/report/index.html",
        f"{EXPERIMENT}/report/scores.csv",
        f"{EXPERIMENT}/report/metrics.csv",
    ):
        assert (root / path).is_file(), path
    assert list((root / EXPERIMENT / "logs/tensorboard").glob("events*"))
    images = list((root / EXPERIMENT / "evaluation/12/tiny/images").glob("*.png"))
    assert len(images) == 42
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
    expected = {"prepare_benchmark": 1, "generate_images": 2, "score_images": 2, "build_report": 1}
    assert workplace.planned() == expected
    workplace.edit(BENCHMARK, lambda c: c.update(num_inference_steps=2, check=None))
    assert workplace.ran() == {"prepare_benchmark": 1, "score_images": 2, "build_report": 1}, (
        "a check needs no new images"
    )


def test_what_is_read_the_same_runs_nothing(workplace: Workplace) -> None:
    """Comments, the order of keys, numbers written otherwise, names in reports, logs, caches, topology."""
    for path in (OPTIONS, BENCHMARK, MIXTURE, "config/config.yaml"):
        file = workplace.root / path
        workplace.edit(path, lambda c: c.update(dict(reversed([(key, c.pop(key)) for key in list(c)]))))
        file.write_text(f"# a comment\n{file.read_text()}")
    workplace.edit(MIXTURE, lambda c: c["data"][0].update(type="other", ratio=2.0))
    workplace.edit(BENCHMARK, lambda c: c.update(text_guidance_scale=1, batch_size=7))
    workplace.edit(OPTIONS, lambda c: c["logger"].update(log_with=None))
    workplace.edit(OPTIONS, lambda c: c["train"].update(batch_size=8, parallelism="ddp", gradient_checkpointing=True))
    workplace.edit(OPTIONS, lambda c: c.update(cache_dir="elsewhere", resume_from_checkpoint=None))
    (workplace.root / OPTIONS).rename(workplace.root / "config/options/renamed.yml")
    workplace.edit("config/config.yaml", lambda c: c.update(experiments=["config/options/renamed.yml"]))
    assert "Nothing to be done" in workplace.snakemake()


def test_a_changed_training_is_refused_before_any_job(workplace: Workplace) -> None:
    """Old checkpoints are not gone on from, and not thrown away: the options have to say that training starts over."""
    weights = "checkpoint-12/transformer/diffusion_pytorch_model.safetensors"
    before = sha256(workplace.root / EXPERIMENT / weights)
    left = {path: path.stat().st_mtime_ns for path in (workplace.root / EXPERIMENT).rglob("*") if path.is_file()}
    workplace.edit(OPTIONS, lambda c: c["train"].update(learning_rate=0.002))
    for arguments in ((), ("train",), ("report", "--dry-run"), (f"{EXPERIMENT}/train.json",)):
        output = workplace.snakemake(*arguments, ok=False)
        assert f"{EXPERIMENT}: was trained otherwise than {OPTIONS} now asks for" in output
        assert "train.learning_rate: 0.001 -> 0.002" in output
        assert "set resume_from_checkpoint: null" in output
        assert f"model: {{pretrained_model_path: {EXPERIMENT}/checkpoint-12/transformer}}" in output
        assert "Traceback" not in output and "rule" not in output.partition("Building DAG")[2]
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert workplace.planned("encode") == {}, "what stands before the training is not refused"
    workplace.edit(OPTIONS, lambda c: c["train"].update(learning_rate=0.001))
    assert "Nothing to be done" in workplace.snakemake()
    workplace.edit(OPTIONS, lambda c: c["train"].update(learning_rate=0.002))
    workplace.edit(OPTIONS, lambda c: c.update(resume_from_checkpoint=None))
    output = workplace.snakemake("--dry-run")
    assert "before: 'train.learning_rate: 0.001' now: 'train.learning_rate: 0.002'" in output
    assert "data.max_output_pixels" not in output, "the reason is the key that has changed"
    expected = {"prepare_training", "train_experiment", "convert_checkpoint", "generate_images", "score_images"}
    assert set(workplace.planned()) == {*expected, "build_report"}
    assert workplace.ran("convert") == {"prepare_training": 1, "train_experiment": 1, "convert_checkpoint": 1}
    assert sha256(workplace.root / EXPERIMENT / "superseded-1" / weights) == before
    assert sha256(workplace.root / EXPERIMENT / weights) != before
    for made in ("evaluation/12/tiny/images", "report/index.html"):
        assert (workplace.root / EXPERIMENT / "superseded-1" / made).exists(), "all of the old attempt goes together"
        assert not (workplace.root / EXPERIMENT / made).exists()
    assert workplace.ran() == {"generate_images": 1, "score_images": 1, "build_report": 1}, "the base is drawn already"


def test_more_steps_and_another_topology_go_on(workplace: Workplace) -> None:
    """Length, logging, checkpointing and topology change no weights."""
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
    rows = (workplace.root / EXPERIMENT / "logs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 15))


def test_pixel_limit_reshards(workplace: Workplace) -> None:
    workplace.edit(OPTIONS, lambda c: c["data"].update(max_output_pixels=2048))
    workplace.edit(OPTIONS, lambda c: c.update(resume_from_checkpoint=None))
    assert workplace.planned()["train_experiment"] == 1
    shards = len(list((workplace.root / "prepared/tiny/shards").glob("*.tar")))
    assert shards > 1
    # Rows that these limits leave nothing of are no part of a shard.
    assert workplace.ran("shard") == {"validate_dataset": 1, "shard_dataset": shards, "index_dataset": 1}


def test_stages_can_be_forced_alone(workplace: Workplace) -> None:
    """What they come to is what it was, and so nothing runs behind them."""
    before = {name: sha256(workplace.root / EXPERIMENT / name) for name in (WEIGHTS, SCORES, "train.json")}
    for rules, target, expected in (
        (
            ("validate_source", "encode_dataset"),
            "encode",
            {"validate_source": 1, "validate_dataset": 1, "encode_dataset": 1},
        ),
        (("train_experiment",), "convert", {"train_experiment": 1}),
        (
            ("index_dataset", "prepare_training", "convert_checkpoint", "score_images"),
            "all",
            {"index_dataset": 1, "prepare_training": 1, "convert_checkpoint": 1, "score_images": 2},
        ),
        (("build_report",), "report", {"build_report": 1}),
    ):
        assert workplace.ran(target, "--forcerun", *rules) == expected, rules
    assert {name: sha256(workplace.root / EXPERIMENT / name) for name in before} == before


def test_wrong_targets_are_one_sentence(workplace: Workplace) -> None:
    tiny, nothing_makes = "experiments/tiny", "No rule to produce"
    for target, sentence in (
        ("experiments/nope/train.json", nothing_makes),
        (f"{tiny}/checkpoint-12-ema/transformer/conversion.json", nothing_makes),
        (
            f"{tiny}/checkpoint-12/transformer_lora/conversion.json",
            "is converted to transformer, transformer_comfyui, transformer_pipeline, transformer_extracted, not to "
            "transformer_lora",
        ),
        (f"{tiny}/evaluation/9999/tiny/scores.json", "saves no checkpoint at step 9999; known: 4, 8, 12."),
        (f"{tiny}/evaluation/0/tiny/parts/9.jsonl", "has 1 parts, from 0"),
        ("prepared/tiny/validation/sources/nope/summary.json", nothing_makes),
    ):
        output = workplace.snakemake("--dry-run", target, ok=False)
        assert sentence in output and "Traceback" not in output, output[-2000:]


def test_a_renamed_experiment_is_not_made_again_and_variants_share_what_is_there(workplace: Workplace) -> None:
    """The report alone shows the name. The base of the variants is evaluated already."""
    done = workplace.run("omnitune", "rename", "tiny", "first")
    assert done.returncode == 0 and "name: tiny -> first" in done.stderr + done.stdout
    assert workplace.planned() == {"build_report": 1}
    sweep = {"options": OPTIONS, "set": {"train.learning_rate": [0.002, 0.003]}}
    workplace.edit("config/config.yaml", lambda c: c.update(sweep=sweep))
    own = ("prepare_training", "train_experiment", "convert_checkpoint", "generate_images", "score_images")
    assert workplace.planned() == {**dict.fromkeys(own, 2), "build_report": 3, "compare_experiments": 1}


def test_snakemake_report_holds_ours(workplace: Workplace) -> None:
    workplace.snakemake("--report", "report.zip")
    assert (workplace.root / "report.zip").stat().st_size > 10_000
