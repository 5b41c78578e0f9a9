"""What an experiment's stages read and write, for the commands and for the rules."""

from pathlib import Path

import pytest

from helpers.projects import changed, project, write
from omnitune.config import Benchmark, ExperimentOptions
from omnitune.paths import BASE, EvaluatedStep
from omnitune.project import Project
from omnitune.stages import Experiment
from omnitune.training.inputs import TrainingFiles

pytestmark = pytest.mark.unit


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """One that starts from the average of another."""
    monkeypatch.chdir(tmp_path)
    first = changed(name="first", train={"max_train_steps": 10, "ema_decay": 0.9})
    path = "experiments/first/checkpoint-10/transformer_ema"
    second = changed(name="second", model={"pretrained_model_path": path}, train={"lora_ft": True})
    return Experiment.of(project(tmp_path, second, first), "second")


def test_a_training_finds_its_files_where_the_rules_leave_them(experiment: Experiment) -> None:
    assert experiment.training_files(encoded=Path("own"), base=None) == TrainingFiles(
        config=experiment.config,
        base=Path("resources/pretrained/demo"),
        transformer=Path("experiments/first/checkpoint-10/transformer_ema"),
        index=Path("prepared/mix/shards/index.parquet"),
        encoded=Path("own"),
        output=Path("experiments/second"),
    )
    files = experiment.encoding_files()
    assert (files.base, files.output) == (Path("resources/pretrained/demo"), Path("prepared/mix/encoded/demo"))


def test_an_evaluation_draws_with_the_converted_weights_of_its_step(experiment: Experiment) -> None:
    benchmark = Benchmark(prompts="p.jsonl", parts=2)
    evaluation = experiment.evaluation("b", benchmark, EvaluatedStep(20, ema=True))
    start = Path("experiments/first/checkpoint-10/transformer_ema")
    assert evaluation.weights.transformer == start
    assert evaluation.weights.lora == Path("experiments/second/checkpoint-20/transformer_lora_ema")
    assert list(map(str, evaluation.parts)) == [
        f"experiments/second/evaluation/20-ema/b/parts/{n}.jsonl" for n in (0, 1)
    ]
    base = experiment.evaluation("b", benchmark, BASE)
    assert (base.weights.transformer, base.weights.lora) == (start, None)
    with pytest.raises(ValueError, match=r"LoRA scale 0\.5: 'second' has no adapter at step 0"):
        experiment.evaluation("b", benchmark, EvaluatedStep(0, lora_scale=0.5))


def test_an_options_file_is_an_experiment_by_itself(experiment: Experiment) -> None:
    with pytest.raises(ValueError, match=r"experiment 'second': .* names the experiment 'first', which is neither"):
        Experiment.alone(experiment.config)


def test_a_variant_has_its_options_in_a_file_that_its_processes_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("mix.yml"), {"data": [{"path": "a.jsonl"}]})
    write(Path("base.yml"), changed())
    found = Project.load({"sweep": {"options": "base.yml", "set": {"train.learning_rate": [0.5]}}})
    name = "x-learning_rate-0.5"
    files = Experiment.of(found, name).training_files()
    assert files.config == Path(f"experiments/{name}/variant.yml")
    assert ExperimentOptions.load(files.config) == found.experiments[name]
    written = files.config.stat().st_mtime_ns
    Experiment.of(found, name)
    assert files.config.stat().st_mtime_ns == written


def test_a_base_that_another_experiment_has_evaluated_is_found(experiment: Experiment) -> None:
    """By `omnitune report`, which knows no other experiments than those that lie beside it."""
    for name, content in (("a", changed(model={"pretrained_model_path": "other"})), ("b", changed())):
        write(Path(f"experiments/{name}/options.yml"), content)
        write(Path(f"experiments/{name}/evaluation/0/bench/scores.json"), "{}")
    alone = Experiment.alone(write(Path("c.yml"), changed(name="c")))
    assert alone._evaluated_elsewhere(BASE) == Path("experiments/b/evaluation/0")
    assert experiment._evaluated_elsewhere(BASE) is None
