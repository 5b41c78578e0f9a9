"""Small things to test with: a transformer's config, and an experiment on the demo's edits that runs in seconds."""

from pathlib import Path
from typing import Any

import yaml

TRANSFORMER: dict[str, Any] = {
    "in_channels": 4,
    "hidden_size": 48,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "axes_dim_rope": (8, 8, 8),
    "axes_lens": (1024, 256, 256),
    "text_feat_dim": 32,
}
OPTIONS: dict[str, Any] = {
    "name": "tiny",
    "seed": 5,
    "data": {
        "data_path": "config/data/tiny.yml",
        "maximum_text_tokens": 64,
        "prompt_dropout_prob": 0.1,
        "max_output_pixels": 1024,
        "max_input_pixels": [1024],
        "max_reject_fraction": 0.05,
        "samples_per_shard": 200,
        "encode": True,
        "encoded_precision": "fp32",
    },
    "model": {"pretrained_model_path": "demo"},
    "train": {
        "global_batch_size": 8,
        "batch_size": 4,
        "max_train_steps": 12,
        "dataloader_num_workers": 0,
        "learning_rate": 0.001,
        "lr_scheduler": "constant",
        "gradient_checkpointing": False,
        "mixed_precision": "no",
    },
    "logger": {"log_with": ["tensorboard"], "checkpointing_steps": 4},
}
MIXTURE = {"data": [{"path": "resources/demo/edit.jsonl", "type": "edit", "ratio": 1}]}
BENCHMARK = {
    "prompts": "resources/demo/heldout/edit.jsonl",
    "num_inference_steps": 2,
    "text_guidance_scale": 1.0,
    "image_guidance_scale": 1.0,
    "negative_prompt": "",
    "height": 32,
    "width": 32,
    "max_pixels": 1024,
    "dtype": "fp32",
    "batch_size": 20,
    "loss_timesteps": 1,
    "check": "demo_scene",
}
CONFIG = {"experiments": ["config/options/tiny.yml"], "benchmarks": ["config/benchmarks/tiny.yml"]}


def write_tiny(root: Path, **train: Any) -> None:
    """Replaces a project's config by the small experiment; `train` changes keys of its train section."""
    options = {**OPTIONS, "train": {**OPTIONS["train"], **train}}
    files = {
        "config/config.yaml": CONFIG,
        "config/options/tiny.yml": options,
        "config/data/tiny.yml": MIXTURE,
        "config/benchmarks/tiny.yml": BENCHMARK,
    }
    for path, content in files.items():
        (root / path).write_text(yaml.safe_dump(content, sort_keys=False))
