"""What Snakemake plans where the average of the weights is kept, and where training starts from one."""

from collections.abc import Callable

import pytest
import yaml
from tiny import OPTIONS, write_tiny
from workplace import Workplace

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
