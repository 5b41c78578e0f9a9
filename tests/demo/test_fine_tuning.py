"""The shipped base draws what it knows; the options of `demo`, as shipped, teach it a star and leave it that."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from omnitune.demo.dataset import write_dataset
from omnitune.distributed.processes import Topology
from omnitune.encoding.encode import encode_dataset
from omnitune.paths import BASE, CHECKPOINT, DEMO, INDEX, SHARDS, VALIDATION, EvaluatedStep
from omnitune.project import Project
from omnitune.sharding.shard import ImageLimits, shard_dataset
from omnitune.stages import Experiment, convert_checkpoint, prepare_base
from omnitune.training.loop import Trainer
from omnitune.validation.dataset import validate_mixture
from omnitune.validation.source import Checks

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TASKS = {"demo_star": 2, "demo_known": 1}  # of the benchmark's prompts, every one of so many is drawn


def rewrite(path: Path, section: str, **keys: Any) -> None:
    content = yaml.safe_load(path.read_text())
    (content[section] if section else content).update(keys)
    path.write_text(yaml.safe_dump(content))


def prepare(root: Path) -> Experiment:
    """The demo's data and base; one process trains, which changes no loss beyond rounding, and nothing is held out."""
    shutil.copytree(ROOT / "config", root / "config")
    write_dataset(Path(DEMO))
    rewrite(Path("config/options/demo.yml"), "train", batch_size=16, async_checkpoint=False)
    rewrite(Path("config/options/demo.yml"), "val", data_path=None)
    for name, each in TASKS.items():
        rewrite(Path(f"config/benchmarks/{name}.yml"), "", loss_timesteps=0)
        prompts = Path(DEMO, "heldout", f"{name.removeprefix('demo_')}.jsonl")
        prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[::each]))
    benchmarks = [f"config/benchmarks/{name}.yml" for name in TASKS]
    project = Project.load({"experiments": ["config/options/demo.yml"], "benchmarks": benchmarks})
    experiment = Experiment.of(project, "demo")
    prepare_base(project, "demo", experiment.start.base)
    return experiment


def train(experiment: Experiment) -> EvaluatedStep:
    """Validates, shards, encodes, trains and converts; the step that came of it."""
    data, validation = experiment.options.data, experiment.path(VALIDATION)
    checks = Checks(maximum_text_tokens=data.maximum_text_tokens, tokenizer=str(experiment.start.base))
    limits = {"max_reject_fraction": data.max_reject_fraction, "samples_per_shard": data.samples_per_shard}
    validate_mixture(data.data_path, validation, checks, progress=False, **limits)
    sides = ImageLimits(data.max_output_pixels, data.max_input_pixels, data.max_side_length)
    shard_dataset(validation, experiment.path(SHARDS), sides, progress=False)
    encode_dataset(experiment.options, experiment.encoding_files(), experiment.path(INDEX), Topology(1))
    files, step = experiment.training_files(), experiment.options.train.max_train_steps
    assert Trainer(experiment.options, files).fit()
    converted = experiment.path(CHECKPOINT, step=step) / "transformer"
    convert_checkpoint(converted, files.transformer, base=None, dtype=None, max_shard_size="5GB", rank=1)
    return EvaluatedStep(step)


def test_the_demo_teaches_a_star_and_keeps_what_the_base_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = prepare(tmp_path)
    tuned = train(experiment)
    project = Project.load(
        {"experiments": [str(experiment.config)], "benchmarks": [f"config/benchmarks/{name}.yml" for name in TASKS]}
    )
    for step in (BASE, tuned):
        for name, benchmark in project.benchmarks.items():
            evaluation = experiment.evaluation(name, benchmark, step)
            evaluation.generate(0, 1)
            evaluation.score()
    scores = pd.read_csv(experiment.report(project.benchmarks).with_name("scores.csv"))
    own = scores[(scores["measure"] == "check_passed") & (scores["task"] == "all") & scores["verdict"].notna()]
    found = own.set_index("benchmark")
    star, known = found.loc["demo_star"], found.loc["demo_known"]
    assert star["base_mean"] <= 0.1 and star["verdict"] == "better" and star["low"] > 0
    assert known["base_mean"] >= 0.9 and known["difference"] >= -0.05
