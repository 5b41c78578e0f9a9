"""What the workflow runs: experiments that follow each other, data sets that they share, which phase needs which."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.pipelines import build_pipeline
from helpers.projects import changed, project, write
from omnitune.config import ExperimentOptions, evaluation_folders
from omnitune.errors import ConfigError
from omnitune.named_files import read_named_files
from omnitune.paths import BASE, EvaluatedStep
from omnitune.project import Phase, Phases, Project

pytestmark = pytest.mark.unit

WEIGHTS = "experiments/{}/checkpoint-10/{}"
DEMO_MIXTURE = {"data": [{"path": "resources/demo/edit.jsonl"}, {"path": "own.jsonl"}]}


def test_experiments_may_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = changed(name="first", train={"max_train_steps": 10})
    second = changed(name="second", model={"pretrained_model_path": "experiments/first/checkpoint-10/transformer"})
    start = project(tmp_path, second, first).starts["second"]
    assert start.model == "demo"
    assert start.base == Path("resources/pretrained/demo")
    assert start.transformer == Path("experiments/first/checkpoint-10/transformer")
    assert start.upstream == ("first", EvaluatedStep(10))


def test_experiments_may_start_from_an_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = changed(name="first", train={"max_train_steps": 10, "ema_decay": 0.9})
    path = "experiments/first/checkpoint-10/transformer_ema"
    second = changed(name="second", model={"pretrained_model_path": path})
    loaded = project(tmp_path, second, first)
    start = loaded.starts["second"]
    assert start.transformer == Path(path)
    assert start.upstream == ("first", EvaluatedStep(10, ema=True))
    folders = evaluation_folders(Path("experiments/second"), loaded.experiments["second"], shared=True)
    assert folders[BASE] == Path("experiments/first/evaluation/10-ema")
    assert start.upstream[1] in loaded.experiments["first"].evaluated
    with pytest.raises(ConfigError, match="'first' keeps no average of its weights"):
        project(tmp_path, second, changed(name="first", train={"max_train_steps": 10}))
    with pytest.raises(ValueError, match="is a LoRA adapter"):
        lora = "experiments/first/checkpoint-10/transformer_lora_ema"
        ExperimentOptions.model_validate(changed(model={"pretrained_model_path": lora}))


def test_impossible_starts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def after(name: str, step: int) -> dict[str, object]:
        return {"pretrained_model_path": f"experiments/{name}/checkpoint-{step}/transformer"}

    first = changed(name="first", train={"max_train_steps": 10})
    with pytest.raises(ConfigError, match="saves no checkpoint at step 7; it saves at 10"):
        project(tmp_path, first, changed(name="second", model=after("first", 7)))
    with pytest.raises(ConfigError, match="neither in `experiments`"):
        project(tmp_path, changed(name="second", model=after("unknown", 7)))
    with pytest.raises(ConfigError, match="in a circle: a -> b -> a"):
        a = changed(name="a", model=after("b", 4000))
        project(tmp_path, a, changed(name="b", model=after("a", 4000)))
    with pytest.raises(ConfigError, match="trains a LoRA adapter"):
        lora = changed(name="first", train={"lora_ft": True, "max_train_steps": 10})
        project(tmp_path, lora, changed(name="second", model=after("first", 10)))
    limited = {"checkpointing_steps": 5, "checkpoints_total_limit": 1}
    with pytest.raises(ConfigError, match=r"may remove its checkpoint at step 5 .* Set val\.evaluate_checkpoints: all"):
        project(tmp_path, {**first, "logger": limited}, changed(name="second", model=after("first", 5)))
    with pytest.raises(ConfigError, match="pretrained_revision: has no effect"):
        project(tmp_path, first, changed(name="second", model={**after("first", 10), "pretrained_revision": "main"}))


def test_starting_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another experiment's converted adapter, by its folder or file, is what that one will leave."""
    monkeypatch.chdir(tmp_path)
    lora = {"lora_ft": True, "max_train_steps": 10}

    def after(path: str, name: str = "second") -> dict[str, object]:
        return changed(name=name, train={**lora, "lora_path": f"{path}/transformer_lora"})

    first = changed(name="first", train=lora)
    for start in ("experiments", "./experiments"):
        loaded = project(tmp_path, first, after(f"{start}/first/checkpoint-10"))
        assert loaded.experiments["second"].adapter_upstream == ("first", EvaluatedStep(10))
    file = "experiments/first/checkpoint-10/transformer_lora/pytorch_lora_weights.safetensors"
    options = ExperimentOptions.model_validate(changed(train={**lora, "lora_path": file}))
    assert options.adapter_upstream == ("first", EvaluatedStep(10))
    assert ExperimentOptions.model_validate(after("elsewhere/checkpoint-10")).adapter_upstream is None
    whole = "experiments/first/checkpoint-10/transformer"
    options = ExperimentOptions.model_validate(changed(train={**lora, "lora_path": whole}))
    assert options.adapter_upstream is None
    model = {"pretrained_model_path": f"{whole}/pytorch_lora_weights.safetensors"}
    assert ExperimentOptions.model_validate(changed(model=model)).model.upstream is None
    for content, expected in (
        (after("experiments/first/checkpoint-7"), "saves no checkpoint at step 7; it saves at 10"),
        (after("experiments/unknown/checkpoint-7"), "names the experiment 'unknown', which is neither"),
        (after("experiments/second/checkpoint-7"), "is its own adapter"),
        (after("experiments/whole/checkpoint-10"), "'whole' trains no LoRA adapter"),
    ):
        with pytest.raises(ConfigError, match=expected):
            project(tmp_path, first, changed(name="whole", train={"max_train_steps": 10}), content)


def family() -> list[dict[str, Any]]:
    """Experiments of all kinds: from the base model, from another's weights or average, its adapter, and both."""
    train = {"max_train_steps": 10}
    lora = {**train, "lora_ft": True}
    average = {"pretrained_model_path": WEIGHTS.format("first", "transformer_ema")}
    return [
        changed(name="first", train={**train, "ema_decay": 0.9}),
        changed(name="second", train=train, model=average, data={"data_path": "other.yml"}),
        changed(name="third", train=train, model={"pretrained_model_path": WEIGHTS.format("second", "transformer")}),
        changed(name="adapter", train={**lora, "ema_decay": 0.9}),
        changed(
            name="both", model=average, train={**lora, "lora_path": WEIGHTS.format("adapter", "transformer_lora_ema")}
        ),
    ]


def load(root: Path, experiments: list[dict[str, Any]], benchmarks: tuple[str, ...] = ("b1", "b2")) -> Project:
    write(root / "mix.yml", DEMO_MIXTURE)
    return project(root, *experiments, benchmarks=benchmarks)


def chains(loaded: Project) -> dict[str, Phases]:
    """All phases that lead to anything, by a name for what they lead to."""
    found = {f"indexed {name}": loaded.indexed(name) for name in loaded.sources}
    found |= {f"listed {name}": loaded.listed(name) for name in loaded.benchmarks}
    for name, options in loaded.experiments.items():
        found |= {f"started {name}": loaded.started(name), f"trained {name}": loaded.trained(name)}
        for step in options.evaluated:
            found[f"converted {name} {step}"] = loaded.converted(name, step)
        for step in (BASE, *options.evaluated):
            for benchmark in loaded.benchmarks:
                found[f"scored {name} {step} {benchmark}"] = loaded.scored(name, step, benchmark)
    return found


STARTS = {
    "first": [],
    "second": [("first", "transformer_ema")],
    "third": [("second", "transformer")],
    "adapter": [],
    "both": [("first", "transformer_ema"), ("adapter", "transformer_lora_ema")],
}


def needed(phase: Phase) -> list[Phase]:
    """What a phase of the family's project works on, told once more."""
    base, data = Phase.of("prepare_pretrained", model="demo"), Phase.of("prepare_demo_data")
    keys = dict(phase.wildcards)
    experiment, step = keys.get("experiment", ""), EvaluatedStep.parse(keys.get("step", "0"))
    starts = [
        Phase.of("convert_checkpoint", experiment=name, step=10, weights=weights)
        for name, weights in STARTS.get(experiment, [])
    ]
    adapter = "_lora" if experiment in {"adapter", "both"} else ""
    weights = f"transformer{adapter}{'_ema' if step.ema else ''}"
    own = Phase.of("convert_checkpoint", experiment=experiment, step=step.number, weights=weights)
    found: dict[str, list[Phase]] = {
        "prepare_pretrained": [],
        "prepare_demo_data": [],
        "validate_dataset": [base, data] if keys.get("dataset") == "mix" else [base],
        "index_dataset": [Phase.of("validate_dataset", dataset=keys.get("dataset"))],
        "prepare_benchmark": [data],
        "prepare_training": [
            Phase.of("index_dataset", dataset="other" if experiment == "second" else "mix"),
            base,
            *starts,
        ],
        "train_experiment": [Phase.of("prepare_training", experiment=experiment)],
        "convert_checkpoint": [Phase.of("train_experiment", experiment=experiment)],
        "score_images": [
            Phase.of("prepare_benchmark", benchmark=keys.get("benchmark")),
            base,
            *([own] if step.number else starts[:1]),
        ],
    }
    return found[phase.rule]


def test_phases_stand_after_those_that_they_need_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = chains(load(tmp_path, family()))
    assert len(found) == 2 + 2 + 5 * 2 + 7 + 12 * 2
    for name, phases in found.items():
        assert len(set(phases)) == len(phases), name
        for place, phase in enumerate(phases):
            assert set(needed(phase)) <= set(phases[:place]), (name, phase)


def test_a_plain_experiment_has_these_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, [changed(train={"max_train_steps": 10})])
    scored = loaded.scored("x", EvaluatedStep(10), "b1")
    assert [phase.rule for phase in scored] == [
        "prepare_demo_data",
        "prepare_benchmark",
        "prepare_pretrained",
        "validate_dataset",
        "index_dataset",
        "prepare_training",
        "train_experiment",
        "convert_checkpoint",
        "score_images",
    ]
    assert dict(scored[-1].wildcards) == {"experiment": "x", "step": "10", "benchmark": "b1"}
    base = loaded.scored("x", BASE, "b1")
    assert [phase.rule for phase in base] == [
        "prepare_demo_data",
        "prepare_benchmark",
        "prepare_pretrained",
        "score_images",
    ]
    write(tmp_path / "mix.yml", {"data": [{"path": "own.jsonl"}]})
    own = project(tmp_path, changed())
    assert [phase.rule for phase in own.validated("mix")] == ["prepare_pretrained", "validate_dataset"]
    heldout = project(tmp_path, changed(val={"data_path": "resources/demo/heldout/star.jsonl"}))
    assert "prepare_demo_data" in [phase.rule for phase in heldout.trained("x")], "held-out rows of the demo are drawn"


def test_the_order_in_the_config_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = changed(name="hub", model={"pretrained_model_path": "owner/model"})
    one = load(tmp_path, [*family(), hub], ("b1", "b2"))
    for number, experiments in enumerate(itertools.permutations([*family(), hub])):
        if number % 97:  # of 720 orders, some
            continue
        other = load(tmp_path, list(experiments), ("b2", "b1"))
        assert chains(other) == chains(one)
        assert list(other.benchmarks) == list(one.benchmarks) == ["b1", "b2"]
        assert list(other.sources) == list(one.sources) == ["mix", "other"]
        assert other.models == one.models == ["demo", "owner--model"]
        assert [other.tokenizer_model(name) for name in other.sources] == ["demo", "demo"]
        assert {name: other.evaluations(name) for name in one.experiments} == {
            name: one.evaluations(name) for name in one.experiments
        }


def test_circles_through_adapters_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def after(name: str, other: str) -> dict[str, Any]:
        adapter = WEIGHTS.format(other, "transformer_lora")
        return changed(name=name, train={"lora_ft": True, "max_train_steps": 10, "lora_path": adapter})

    with pytest.raises(ConfigError, match="in a circle: a -> b -> a"):
        project(tmp_path, after("a", "b"), after("b", "a"))
    with pytest.raises(ConfigError, match=r"in a circle: .*a -> b -> c -> a"):
        project(tmp_path, after("d", "a"), after("a", "b"), after("b", "c"), after("c", "a"))


def test_an_evaluated_start_is_not_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, family())
    last, average = EvaluatedStep(10), EvaluatedStep(10, ema=True)
    assert loaded.evaluations("second") == {BASE: ("first", average), last: ("second", last)}
    assert loaded.evaluations("first") == {
        BASE: ("adapter", BASE),
        last: ("first", last),
        average: ("first", average),
    }
    between = {"pretrained_model_path": "experiments/first/checkpoint-5/transformer"}
    first = changed(name="first", train={"max_train_steps": 10}, logger={"checkpointing_steps": 5})
    loaded = load(tmp_path, [first, changed(name="second", model=between)])
    assert loaded.evaluations("second")[BASE] == ("second", BASE), "step 5 is not evaluated for the first"


def test_where_an_experiment_starts_and_what_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, family())
    conversion = "experiments/{}/checkpoint-10/{}/conversion.json"
    average = EvaluatedStep(10, ema=True)
    assert loaded.conversion("first", average) == conversion.format("first", "transformer_ema")
    assert loaded.conversion("adapter", average) == conversion.format("adapter", "transformer_lora_ema")
    assert loaded.starting_conversion("both") == conversion.format("first", "transformer_ema")
    assert loaded.starting_conversion("adapter") is None
    assert loaded.starting_adapter("both") == conversion.format("adapter", "transformer_lora_ema")
    assert loaded.starting_adapter("adapter") is None
    for path, file in (("here", "here/pytorch_lora_weights.safetensors"), ("a.safetensors", "a.safetensors")):
        published = changed(train={"lora_ft": True, "lora_path": path})
        assert project(tmp_path, published).starting_adapter("x") == file


def test_shards_are_grouped_for_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = project(tmp_path, changed(data={"shards_per_encoding": 2}))
    for name in ("b-00000", "a-00003", "a-00000", "a-00002"):
        write(tmp_path / f"prepared/mix/validation/shards/{name}.jsonl", "")
        write(tmp_path / f"prepared/mix/validation/shards/{name}.sha256", "")
    assert loaded.groups("mix") == {("a", 0): ["a-00000"], ("a", 1): ["a-00002", "a-00003"], ("b", 0): ["b-00000"]}
    groups = [f"prepared/mix/encoded/demo/groups/{name}.parquet" for name in ("a-0000", "a-0001", "b-0000")]
    assert loaded.encodings("mix", "demo") == groups


def test_unknown_names_are_one_sentence_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, family())
    for call, message in (
        (lambda: loaded.experiment("secnod"), "experiment 'secnod' is not in the config; did you mean 'second'?"),
        (
            lambda: loaded.experiment("zzz"),
            "experiment 'zzz' is not in the config; known: adapter, both, first, second, third.",
        ),
        (lambda: loaded.dataset("mxi"), "data set 'mxi' belongs to no experiment; did you mean 'mix'?"),
        (lambda: loaded.dataset("zzz"), "data set 'zzz' belongs to no experiment; known: mix, other."),
        (lambda: loaded.base_source("zzz"), "resources/pretrained/zzz: no experiment starts from this; known: demo."),
        (
            lambda: loaded.encoder("mix", "zzz"),
            "prepared/mix/encoded/zzz: no experiment trains on this data from this model.",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert str(error.value) == message


@pytest.mark.slow
def test_reading_the_graph_loads_nothing_heavy() -> None:
    """Snakemake does it in each job; torch alone would take seconds."""
    code = (
        "import sys, omnitune.project, omnitune.refusals, omnitune.survey, omnitune.evaluation.prompts\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'torchmetrics', 'accelerate'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_steps_and_weights_that_no_training_leaves_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, family())
    for name, step, weights in (
        ("first", "10", "transformer"),
        ("first", "10-ema", "transformer_ema"),
        ("first", "10", "transformer_extracted"),
        ("first", "0", None),
    ):
        loaded.experiments[name].require_step(EvaluatedStep.parse(step), weights)
    for name, step, weights, message in (
        ("first", "11", None, r"'first' saves no checkpoint at step 11; known: .*10\."),
        ("second", "10-ema", None, "'second' keeps no average"),
        (
            "first",
            "10",
            "transformer_lora",
            "'first' is converted to transformer, transformer_comfyui, .*, not to transformer_lora",
        ),
        ("first", "10", "transformer_merged", "'first' is converted to transformer, .*, not to transformer_merged"),
        ("first", "0-ema", None, "saves no checkpoint at step 0-ema"),
    ):
        with pytest.raises(ConfigError, match=message):
            loaded.experiments[name].require_step(EvaluatedStep.parse(step), weights)


def test_prompts_in_a_published_format_are_looked_at_before_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All behind the import finds them in our format."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dpg").mkdir()
    text = tmp_path / "dpg/1.txt"
    text.write_text("a prompt")
    write(tmp_path / "mine.yml", {"prompts": "dpg", "format": "dpg", "image_root": "elsewhere"})
    options = project(tmp_path, changed()).options_files
    config = {"experiments": list(map(str, options.values())), "benchmarks": ["mine.yml"]}
    loaded = Project.load(config)
    assert loaded.benchmarks["mine"].prompts == "resources/benchmarks/mine/imported/prompts.jsonl"
    assert loaded.benchmarks["mine"].image_root is None
    assert [phase.rule for phase in loaded.listed("mine")] == ["import_prompts", "prepare_benchmark"]
    assert loaded.prompt_sources("mine") == ["dpg/1.txt"]
    text.write_text(" ")
    with pytest.raises(
        ConfigError, match=r"benchmark 'mine': dpg/1\.txt: 1 problem\n  - instruction: '' is not allowed"
    ):
        read_named_files(Project.load(config))
    text.rename(tmp_path / "dpg/1;.txt")
    with pytest.raises(ConfigError, match=r"1;\.txt: 2 problems\n  - key: '1;'"):
        read_named_files(Project.load(config))


def test_adapters_are_evaluated_at_several_scales_and_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {"lora_ft": True, "max_train_steps": 10}
    loaded = project(
        tmp_path, changed(name="first", train=keys, val={"lora_scales": [1.5, 0.5, 1.0]}), benchmarks=("b",)
    )
    assert [str(step) for step in loaded.evaluations("first")] == ["0", "10-x0.5", "10", "10-x1.5"]
    assert [str(step) for step, _ in loaded.exports("first")] == ["10"]
    half = EvaluatedStep(10, lora_scale=0.5)
    assert loaded.conversion("first", half) == loaded.conversion("first", EvaluatedStep(10))
    loaded.experiments["first"].require_step(half)
    with pytest.raises(ConfigError, match=r"'first' is not evaluated at LoRA scale 0\.7 \(val\.lora_scales\)"):
        loaded.experiments["first"].require_step(EvaluatedStep(10, lora_scale=0.7))
    with pytest.raises(ConfigError, match=r"val\.lora_scales: scales are of adapters, but train\.lora_ft is false"):
        project(tmp_path, changed(name="first", val={"lora_scales": [0.5]}))
    with pytest.raises(ConfigError, match=r"val\.lora_scales\.0: 0\.123 is not allowed"):
        project(tmp_path, changed(name="first", train=keys, val={"lora_scales": [0.123]}))


def test_baselines_are_drawn_once_for_all_experiments_of_a_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_pipeline().save_pretrained(tmp_path / "models/whole")
    keys = {"prompts": "resources/demo/heldout/edit.jsonl"}
    folders = {"whole": "models/whole", "part": "models/whole/transformer"}
    files = [
        str(write(tmp_path / "with.yml", {**keys, "baselines": folders})),
        str(write(tmp_path / "without.yml", keys)),
    ]
    write(tmp_path / "mix.yml", {"data": [{"path": "resources/demo/edit.jsonl"}]})
    other = changed(name="a", model={"pretrained_model_path": "models/whole"})
    options = [str(write(tmp_path / f"{o['name']}.yml", o)) for o in (changed(name="c"), changed(name="b"), other)]
    loaded = Project.load({"experiments": options, "benchmarks": files})
    read_named_files(loaded)
    whole, part = (EvaluatedStep(0, baseline=name) for name in folders)
    assert EvaluatedStep.parse("baseline-whole") == whole and (str(whole), whole.label) == ("baseline-whole", "whole")
    assert [loaded.evaluations(name)[whole] for name in "abc"] == [("a", whole), ("b", whole), ("b", whole)]
    evaluated = loaded.evaluated("bc")
    assert [found for found in evaluated if found[1].baseline] == [("b", part, "with"), ("b", whole, "with")]
    assert len(evaluated) == len(set(evaluated)) == 2 * 3 + 2, "the base, two last checkpoints, two baselines"
    assert loaded.scored("b", whole, "with")[-2] == Phase.of("prepare_pretrained", model="demo")
    assert loaded.loaded("b", whole, "with")[0] == loaded.loaded("b", part, "with")[0] == Path(folders["part"])
    assert loaded.loaded("b", BASE, "with")[0] == Path("resources/pretrained/demo/transformer")
    assert set(loaded.baseline_files("with", "whole")) > set(loaded.baseline_files("with", "part"))
    for name, file, said in (
        ("whole", "vae/config.json", "whole: .*models/whole/vae"),
        ("part", "transformer/config.json", "part: models/whole/transformer is neither a pipeline's folder"),
    ):
        moved = (tmp_path / "models/whole" / file).rename(tmp_path / "moved.json")
        with pytest.raises(ValueError, match=rf"benchmark 'with': baselines\.{said}"):
            loaded.baseline_files("with", name)
        moved.rename(tmp_path / "models/whole" / file)
    with pytest.raises(ConfigError, match="benchmark 'without': baselines: none is called 'part'"):
        loaded.loaded("b", part, "without")
