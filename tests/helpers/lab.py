"""A project as small as the whole graph can be run on: two experiments after each other, two data sets, one benchmark.

Everything in it is written by `write_lab` from a `Lab`, which says what the user has asked for; edits change the Lab.
"""

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

SHAPES = ("circle", "square", "triangle")
EXPECT = {
    "shape": "circle",
    "color": "red",
    "position": [0.3, 0.5],
    "size": 0.5,
    "background": [200, 200, 200],
    "width": 32,
    "height": 32,
}
OPTIONS: dict[str, Any] = {
    "seed": 5,
    "data": {
        "maximum_text_tokens": 64,
        "prompt_dropout_prob": 0.0001,
        "max_output_pixels": 1024,
        "max_input_pixels": [1024],
        "max_reject_fraction": 0.5,
        "samples_per_shard": 8,
        "encode": True,
        "encoded_precision": "fp32",
        "shards_per_encoding": 1,
    },
    "model": {"pretrained_model_path": "demo"},
    "train": {
        "global_batch_size": 2,
        "batch_size": 2,
        "max_train_steps": 4,
        "dataloader_num_workers": 0,
        "learning_rate": 0.001,
        "lr_scheduler": "constant",
        "gradient_checkpointing": False,
        "mixed_precision": "no",
    },
    "logger": {"log_with": None, "checkpointing_steps": 2},
}
BENCHMARK: dict[str, Any] = {
    "prompts": "data/prompts.jsonl",
    "seed": 0,
    "num_inference_steps": 1,
    "text_guidance_scale": 1.0,
    "image_guidance_scale": 1.0,
    "negative_prompt": "",
    "height": 32,
    "width": 32,
    "max_pixels": 1024,
    "dtype": "fp32",
    "batch_size": 2,
    "parts": 1,
    "loss_timesteps": 1,
    "check": "demo_scene",
}


def row(source: str, number: int) -> dict[str, Any]:
    """A caption with its picture; one of number 0 has none, and is rejected."""
    return {
        "task_type": "t2i",
        "instruction": f"{source} {SHAPES[number % 3]} {number}",
        "output_image": f"images/{source}_{number}.png" if number else "images/none.png",
    }


@dataclass
class Lab:
    """What a user has written: the content of every file.

    Attributes:
        rows: of each .jsonl, by source; a string stands for itself.
        mixtures: entries by data set.
        options: by experiment, without its name.
        benchmarks: by name.
        experiments, shown: those in config.yaml, in order; `shown` are the benchmarks.
        comments: appended to files, by path.
        reverse: files whose keys are written in the opposite order.
    """

    rows: dict[str, list[dict[str, Any] | str]] = field(default_factory=dict)
    mixtures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    comments: dict[str, str] = field(default_factory=dict)
    reverse: set[str] = field(default_factory=set)

    def copy(self) -> "Lab":
        """One that can be changed on its own."""
        return copy.deepcopy(self)

    def files(self) -> dict[str, str]:
        """Every text file of the project that a user writes, by path."""
        found = {f"data/{name}.jsonl": self._lines(rows) for name, rows in self.rows.items()}
        prompts = [
            {**row("p", number), "key": f"p{number}", "expect": EXPECT, "output_image": f"images/p_{number}.png"}
            for number in (1, 2, 3)
        ]
        found["data/prompts.jsonl"] = self._lines(prompts)
        for name, entries in self.mixtures.items():
            found |= self._yaml(f"config/data/{name}.yml", {"data": entries})
        for name, options in self.options.items():
            found |= self._yaml(f"config/options/{name}.yml", {"name": name, **options})
        for name, benchmark in self.benchmarks.items():
            found |= self._yaml(f"config/benchmarks/{name}.yml", benchmark)
        experiments = [f"config/options/{name}.yml" for name in self.experiments]
        benchmarks = [f"config/benchmarks/{name}.yml" for name in self.shown]
        return found | self._yaml("config/config.yaml", {"experiments": experiments, "benchmarks": benchmarks})

    @staticmethod
    def _lines(rows: list[Any]) -> str:
        return "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in rows)

    def _yaml(self, path: str, content: dict[str, Any]) -> dict[str, str]:
        if path in self.reverse:
            content = dict(reversed(content.items()))
        return {path: yaml.safe_dump(content, sort_keys=False) + self.comments.get(path, "")}


def first_lab() -> Lab:
    """`one` trains all parameters on the data set a, `two` a LoRA on top of it on the data set b."""
    one, two = copy.deepcopy(OPTIONS), copy.deepcopy(OPTIONS)
    one["data"] |= {"data_path": "config/data/a.yml", "encode": False}
    two["data"] |= {"data_path": "config/data/b.yml", "shards_per_encoding": 1}
    two["model"]["pretrained_model_path"] = "experiments/one/checkpoint-4/transformer"
    two["train"] |= {"lora_ft": True, "lora_rank": 2}
    return Lab(
        rows={
            "a1": [row("a1", number) for number in range(1, 13)],
            "a2": [row("a2", number) for number in range(6)],
            "b1": [row("b1", number) for number in range(1, 13)],
        },
        mixtures={
            "a": [
                {"path": "data/a1.jsonl", "type": "t2i", "ratio": 3},
                {"path": "data/a2.jsonl", "type": "t2i", "ratio": 1},
            ],
            "b": [{"path": "data/b1.jsonl", "type": "t2i", "ratio": 1}],
        },
        options={"one": one, "two": two},
        benchmarks={"first": copy.deepcopy(BENCHMARK)},
        experiments=["one", "two"],
        shown=["first"],
    )


def write_lab(lab: Lab, root: Path) -> None:
    """Brings the files of a project into step; what is as it should be is not touched."""
    for path, text in lab.files().items():
        target = root / path
        if not target.is_file() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            written = target.with_name(f".{target.name}.new")
            written.write_text(text)
            written.replace(target)  # the old file may be shared with another copy of the project
    for kind, kept in (("options", lab.options), ("data", lab.mixtures), ("benchmarks", lab.benchmarks)):
        for path in (root / "config" / kind).glob("*.yml"):
            if path.stem not in kept:
                path.unlink()


def draw_images(root: Path) -> None:
    """A picture for each row that a lab may come to have."""
    folder = root / "data/images"
    folder.mkdir(parents=True, exist_ok=True)
    for source in ("a1", "a2", "b1", "p"):
        for number in range(1, 40):
            color = (number * 37 % 256, number * 91 % 256, len(source) * 60)
            Image.new("RGB", (32, 32), color).save(folder / f"{source}_{number}.png")


def make_newer(path: Path) -> None:
    """As a save in an editor does; the file may be shared with another copy of the project."""
    written = path.with_name(f".{path.name}.new")
    shutil.copyfile(path, written)
    written.replace(path)
