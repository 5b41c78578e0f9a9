"""Files that are lost or changed after a run: what is declared is made again; of the rest it is said what to type."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.workplace import Workplace, count_jobs

pytestmark = pytest.mark.workflow

VALIDATION, SHARDS, ENCODED = "prepared/tiny/validation", "prepared/tiny/shards", "prepared/tiny/encoded/demo"
EXPERIMENT = "experiments/tiny"
EVALUATION = f"{EXPERIMENT}/evaluation/12/tiny"
CHECKPOINT = f"{EXPERIMENT}/checkpoint-12"
WEIGHTS = f"{CHECKPOINT}/transformer"
# Each kind of file that rules declare, several in a run: (lost, jobs that run).
DECLARED = [
    (
        [f"{SHARDS}/edit-00001.tar", f"{SHARDS}/edit-00000.parquet", f"{VALIDATION}/rejected.jsonl"],
        {"shard_dataset": 2, "index_dataset": 1, "validate_dataset": 1},
    ),
    (
        [f"{SHARDS}/index.arrow", f"{VALIDATION}/summary.json", f"{EVALUATION}/scores.json"],
        {"index_dataset": 1, "validate_dataset": 1, "score_images": 1},
    ),
    (
        [f"{SHARDS}/index.parquet", f"{WEIGHTS}/conversion.json", f"{EXPERIMENT}/report/index.html"],
        {"index_dataset": 1, "convert_checkpoint": 1, "build_report": 1},
    ),
    (
        [
            f"{VALIDATION}/samples.parquet",
            f"{VALIDATION}/shards",
            f"{SHARDS}/digests",
            "resources/benchmarks/tiny/protocol.json",
            "resources/benchmarks/tiny/scoring.json",
        ],
        {"validate_dataset": 1, "index_dataset": 1, "prepare_benchmark": 1},
    ),
    (
        [f"{ENCODED}/groups/edit-0000.parquet", f"{EVALUATION}/generations.jsonl"],
        {"encode_dataset": 1, "prepare_training": 1, "score_images": 1},
    ),
    (
        [
            f"{EXPERIMENT}/identity.json",
            f"{EXPERIMENT}/train.json",
            "resources/pretrained/demo/manifest.json",
            "resources/demo/edit.jsonl",
        ],
        {"prepare_training": 1, "train_experiment": 1, "prepare_pretrained": 1, "prepare_demo_data": 1},
    ),
    # The parts are joined in generations.jsonl: nobody needs them but who draws or scores again.
    ([f"{EVALUATION}/parts/0.jsonl"], {}),
    ([f"{EVALUATION}/scores.json"], {"generate_images": 1, "score_images": 1}),
]
# Made by a job beside what it declares: the file, and a part of the command that makes it again.
UNDECLARED = {
    f"{ENCODED}/edit-00001.tar": f"--force {ENCODED}/groups/edit-0000.parquet",
    f"{WEIGHTS}/diffusion_pytorch_model.safetensors": f"--force {WEIGHTS}/conversion.json",
    f"{EVALUATION}/images/edit-003.png": f"--force {EVALUATION}/parts/*.jsonl",
    f"{EXPERIMENT}/checkpoint-8/trainer_state.json": f"rm {EXPERIMENT}/train.json",
    "resources/pretrained/demo/vae/config.json": "--force resources/pretrained/demo/manifest.json",
}


def contents(root: Path) -> dict[str, str]:
    """Hash of what a run leaves, but for what holds times."""
    left = [path for top in ("resources", "prepared", "experiments") for path in (root / top).rglob("*")]
    names = {str(path.relative_to(root)): path for path in left if path.is_file()}
    timed = re.compile(r"index\.html|/logs/|snakemake_timestamp|options\.yml|train\.json")
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if not timed.search(name)
    }


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_declared_files_are_made_again_alone(workplace: Workplace) -> None:
    before = contents(workplace.root)
    for lost, expected in DECLARED:
        for path in lost:
            remove(workplace.root / path)
        assert workplace.ran() == expected, lost
    assert contents(workplace.root) == before


def test_undeclared_files_that_are_lost_are_named_with_the_command(workplace: Workplace) -> None:
    """And needed by nobody, they run nothing; the commands bring them back."""
    before = contents(workplace.root)
    for path in UNDECLARED:
        remove(workplace.root / path)
    output = workplace.snakemake()
    assert "Nothing to be done" in output
    commands = {}
    for path, command in UNDECLARED.items():
        place = path.removesuffix("/trainer_state.json")
        (line,) = [line for line in output.splitlines() if line.startswith(place)]
        assert command in line
        commands[path] = line.rpartition("snakemake --cores 2 ")[2].split()
    workplace.snakemake("--force", "resources/pretrained/demo/manifest.json")
    for path in list(UNDECLARED)[:3]:
        arguments = [
            found
            for word in commands[path]
            for found in (
                [str(p.relative_to(workplace.root)) for p in workplace.root.glob(word)] if "*" in word else [word]
            )
        ]
        workplace.snakemake(*arguments)
    after = contents(workplace.root)
    changed = {path for path in before if after.get(path) != before[path]}
    # the held-out loss of the image that was drawn again, alone and not in a batch, may have another last digit
    assert changed - {f"{EVALUATION}/parts/0.jsonl"} == {f"{EXPERIMENT}/checkpoint-8/trainer_state.json"}


def test_what_is_changed_by_hand_is_noticed(workplace: Workplace) -> None:
    """A score, an image, weights and a checkpoint: by the run that follows, and by whoever takes them."""
    root = workplace.root
    scores, image = root / EVALUATION / "scores.json", root / EVALUATION / "images/edit-003.png"
    content = json.loads(scores.read_text())
    scores.write_text(json.dumps({**content, "means": {**content["means"], "psnr": 99.0}}, indent=2))
    output = workplace.snakemake(ok=False)
    assert f"{EVALUATION}/scores.json: was changed after it was written" in output
    assert f"snakemake --cores 2 --force {EVALUATION}/scores.json" in output and "Traceback" not in output
    assert workplace.ran("--force", f"{EVALUATION}/scores.json") == {"score_images": 1}
    assert workplace.ran() == {"build_report": 1}
    image.write_bytes(image.read_bytes() + b"x")
    output = workplace.snakemake()
    assert f"{EVALUATION}/images/edit-003.png was changed after it was written" in output
    output = workplace.snakemake("--forcerun", "build_report", ok=False)
    assert "edit-003.png: is not the image that was drawn" in output
    assert count_jobs(workplace.snakemake("--force", f"{EVALUATION}/parts/0.jsonl"))["generate_images"] == 1
    workplace.snakemake()  # scores and report, which would refuse weights that were changed
    weights = root / WEIGHTS / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-64:] = bytes(64)
    workplace.replace(weights, data)
    assert "diffusion_pytorch_model.safetensors was changed after it was written" in workplace.snakemake()
    output = workplace.snakemake("--force", f"{EVALUATION}/parts/0.jsonl", ok=False)
    assert "is not what was written" in output and "Traceback" not in output
    part = next((root / CHECKPOINT / "pytorch_model_fsdp_0").glob("*.distcp"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    workplace.replace(part, data)
    output = workplace.snakemake("--force", f"{WEIGHTS}/conversion.json", ok=False)
    assert f"{part.name}: is not what training has saved" in output and "Traceback" not in output


def test_a_lost_checkpoint_that_is_needed_says_what_to_type(workplace: Workplace) -> None:
    remove(workplace.root / CHECKPOINT)
    output = workplace.snakemake("convert", ok=False)
    assert f"{CHECKPOINT}" in output and "Traceback" not in output
    assert f"rm {EXPERIMENT}/train.json" in output
    (workplace.root / EXPERIMENT / "train.json").unlink()
    assert "going on from experiments/tiny/checkpoint-8" in workplace.snakemake("convert")
