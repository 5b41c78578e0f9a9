"""The average of the weights through the workflow, and a training that starts from one."""

import json
from collections.abc import Callable

import pytest
import yaml
from safetensors.torch import load_file

from helpers.tiny import OPTIONS, write_tiny
from helpers.workplace import Workplace

pytestmark = pytest.mark.workflow


def test_averages_are_converted_evaluated_and_trained_from(new_workplace: Callable[[str], Workplace]) -> None:
    place = new_workplace("averages")
    write_tiny(place.root)
    plain = place.planned()
    write_tiny(place.root, ema_decay=0.9)
    averaged = place.planned()
    changed = {"convert_checkpoint": 2, "generate_images": 3, "score_images": 3}
    assert averaged == {**plain, **changed}
    model = {"pretrained_model_path": "experiments/tiny/checkpoint-12/transformer_ema"}
    second = {**OPTIONS, "name": "second", "model": model}
    (place.root / "config/options/second.yml").write_text(yaml.safe_dump(second))
    place.edit("config/config.yaml", lambda config: config["experiments"].append("config/options/second.yml"))
    # the base of the second is the first's average, which is evaluated already
    assert place.planned() == {
        **averaged,
        "prepare_training": 2,
        "train_experiment": 2,
        "convert_checkpoint": 3,
        "generate_images": 4,
        "score_images": 4,
        "build_report": 2,
    }
    output = place.snakemake("--dry-run", "experiments/second/train.json")
    assert "experiments/tiny/checkpoint-12/transformer_ema/conversion.json" in output
    place.edit("config/options/tiny.yml", lambda options: options["train"].pop("ema_decay"))
    assert "keeps no average of its weights" in place.snakemake("--dry-run", ok=False)


def test_average_from_training_to_report(workplace: Workplace) -> None:
    """A real run: kept while training, converted and evaluated beside the weights, and shown."""
    options = {**OPTIONS, "name": "averaged", "train": {**OPTIONS["train"], "batch_size": 8, "ema_decay": 0.9}}
    (workplace.root / "config/options/averaged.yml").write_text(yaml.safe_dump(options))
    workplace.edit("config/config.yaml", lambda config: config.update(experiments=["config/options/averaged.yml"]))
    workplace.snakemake()
    folder = workplace.root / "experiments/averaged"
    weights, average, start = (
        load_file(path / "diffusion_pytorch_model.safetensors")
        for path in (
            folder / "checkpoint-12/transformer",
            folder / "checkpoint-12/transformer_ema",
            workplace.root / "resources/pretrained/demo/transformer",
        )
    )
    moved = {name: tuple(float((state[name] - start[name]).norm()) for state in (weights, average)) for name in weights}
    assert weights.keys() == average.keys()
    # an average with a decay of 0.9 over 12 steps has gone a part of the way
    assert all(0 < after < before for before, after in moved.values() if before)
    scores = [json.loads((folder / f"evaluation/{step}/tiny/scores.json").read_text()) for step in ("12", "12-ema")]
    assert scores[0]["weights"] != scores[1]["weights"] and scores[1]["ema"]
    page = (folder / "report/index.html").read_text()
    assert "step 12 (EMA)" in page
    assert "Nothing to be done" in workplace.snakemake()
