"""The card of converted weights says what they are, and nothing of this machine."""

import json
from pathlib import Path

import pytest
import yaml

from helpers.conversions import CONFIG, adapters_of, lora_model, options_for, start_of, write_checkpoint
from omnitune.checkpoints.states import TrainerState
from omnitune.conversion.export import convert
from omnitune.conversion.write import Target
from omnitune.io.files import sha256_of
from omnitune.paths import STATE_FILE

pytestmark = pytest.mark.unit


def test_a_card_of_an_adapter(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    write_checkpoint(adapters_of(lora_model()), checkpoint, "distributed")
    data = {"cats": {"samples": 12, "ratio": 0.75, "sha256": "0"}, "dogs": {"samples": 4, "ratio": 0.25, "sha256": "1"}}
    files = {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in checkpoint.glob("*/*")}
    state = TrainerState(3, {"options": {}, "data": data}, None, files=files)
    (checkpoint / STATE_FILE).write_text(json.dumps(vars(state)))
    options = options_for(lora=True, alpha=8, arch=CONFIG)
    for format, sentence in (("diffusers", "PeftModel.from_pretrained"), ("comfyui", "models/loras")):
        report = convert(options, checkpoint, tmp_path / format, start_of(tmp_path), target=Target(format))
        text = (tmp_path / format / "README.md").read_text()
        assert "README.md" in report["files"], "what is uploaded is what was written"
        assert "A LoRA adapter of" in text and "after 3 steps" in text and sentence in text
        assert "| cats | 12 | 0.75 |" in text and "- lora_alpha: 8" in text
        assert str(tmp_path) not in text
        assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"


def test_a_base_from_a_repository_is_named_and_a_local_one_is_not(tmp_path: Path) -> None:
    write_checkpoint(adapters_of(lora_model()), tmp_path / "checkpoint-3", "bin")
    for name, shown in (("OmniGen2/OmniGen2", True), (str(tmp_path / "secret"), False)):
        options = options_for(lora=True, alpha=8)
        model = options.model.model_copy(update={"pretrained_model_path": name})
        convert(
            options.model_copy(update={"model": model}), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path)
        )
        text = (tmp_path / "out/README.md").read_text()
        assert (yaml.safe_load(text.split("---")[1]).get("base_model") == name) == shown == (name in text)
