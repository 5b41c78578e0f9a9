"""What a config names is looked at before any job: weights, adapters, held-out samples, samples, experiments."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.projects import changed, project, write
from omnitune.config.benchmarks.judge import Judge
from omnitune.config.benchmarks.measure import MeasureEntry
from omnitune.errors import ConfigError
from omnitune.evaluation.weights import evaluated_weights, require_there
from omnitune.io.json_object import read_json
from omnitune.io.model_files.weights import read_header, require_weights
from omnitune.io.places import is_local
from omnitune.named_files import read_named_files
from omnitune.project import Project
from omnitune.report.training import read_samples
from omnitune.validation.summary import whole_of

pytestmark = pytest.mark.unit

EMPTY = "\x02" + 7 * "\0" + "{}"  # a .safetensors file of no tensors


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def base(folder: Path) -> Path:
    for part in ("transformer", "vae", "mllm", "processor", "scheduler"):
        write(folder / part / "config.json", "{}")
        write(folder / part / "model.safetensors", EMPTY)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        write(folder / name, "{}")
    return folder


@pytest.mark.parametrize(
    "name", ["./base", "/no/base", "~/base", "a/b/c", "base", "OmniGen2/OmniGen2/", "models/bse", "models/base/vea"]
)
def test_a_path_that_does_not_exist_is_not_looked_for_in_a_network(place: Path, name: str) -> None:
    base(place / "models/base")
    with pytest.raises(ValueError, match=rf"--model_path: '{name}' (does not exist|is neither a path)"):
        is_local(name, "--model_path")


def test_paths_and_repositories_are_told_apart(place: Path) -> None:
    base(place / "models/base")
    assert is_local("models/base", "key")
    assert not is_local("OmniGen2/OmniGen2", "key")
    with pytest.raises(ValueError, match=r"Did you mean 'models/base'\?"):
        is_local("models/bas", "key")


@pytest.mark.parametrize(("name", "reader"), [("a.safetensors", read_header), ("a.json", read_json)])
def test_a_pipe_is_not_waited_for(place: Path, name: str, reader: Callable[[Path], object]) -> None:
    os.mkfifo(place / name)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read.*no regular file"):
        reader(place / name)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("mllm/model.safetensors", EMPTY[:-1], r"mllm/model\.safetensors: .* cut off"),
        ("vae/model.safetensors", "", r"vae/model\.safetensors: .* it is empty"),
        ("vae/config.json", "version https://git-lfs.github.com/spec/v1\n", r"vae/config\.json: .* pointer of git-lfs"),
        ("processor/tokenizer.json", '{"model": ', r"processor/tokenizer\.json: .* no JSON"),
        ("transformer/m.safetensors.index.json", '{"weight_map": {"a": "m-1.safetensors"}}', r"m-1.* is missing"),
    ],
)
def test_a_damaged_base_is_met_before_any_job(place: Path, file: str, content: str, message: str) -> None:
    options = changed(model={"pretrained_model_path": "base"})
    base(place / "base")
    read_named_files(project(place, options))
    write(place / "base" / file, content)
    with pytest.raises(ValueError, match=rf"model\.pretrained_model_path: .*{message}"):
        read_named_files(project(place, options))


def test_other_parts_of_a_base_are_looked_at_too(place: Path) -> None:
    vae = "pretrained_vae_model_name_or_path"
    with pytest.raises(ValueError, match=rf"model\.{vae}: '\./vae' does not exist"):
        read_named_files(project(place, changed(model={"pretrained_model_path": "demo", vae: "./vae"})))
    encoder = "pretrained_text_encoder_model_name_or_path"
    write(base(place / "base") / "mllm/model.safetensors", "x")
    with pytest.raises(ValueError, match=rf"model\.{encoder}: base/mllm/model\.safetensors: .* cut off"):
        read_named_files(project(place, changed(model={"pretrained_model_path": "demo", encoder: "base/mllm"})))


def test_formats_that_cannot_be_made_are_met_before_any_job(place: Path) -> None:
    def read(*patterns: str) -> None:
        groups = [{"pattern": pattern} for pattern in patterns] or None
        options = changed(train={"parameter_groups": groups}, convert={"formats": ["extracted"]})
        read_named_files(project(place, options))

    read()
    read("*norm*", "layers.30.attn.*")
    with pytest.raises(ConfigError, match=r"0\.yml: train\.parameter_groups: trains no weight of a linear layer"):
        read("*.norm_q.weight", "*.bias")


@pytest.mark.parametrize(
    ("name", "message"), [("no", "does not exist"), ("a.bin", "cut off"), ("a.safetensors", "cut")]
)
def test_a_damaged_adapter_is_met_before_any_job(place: Path, name: str, message: str) -> None:
    for file in ("a.bin", "a.safetensors"):
        write(place / file, "x")
    with pytest.raises(ConfigError, match=rf"0\.yml: .*{message}"):
        read_named_files(project(place, changed(train={"lora_ft": True, "lora_path": name})))


def test_heldout_samples_are_read_before_any_job(place: Path) -> None:
    options = changed(val={"data_path": "held.jsonl"})
    with pytest.raises(ConfigError, match=r"0\.yml: val\.data_path: held\.jsonl does not exist"):
        read_named_files(project(place, options))
    row = {"task_type": "t2i", "instruction": "a cat", "output_image": "no.png"}
    write(place / "held.jsonl", "\n" + json.dumps(row))
    with pytest.raises(ConfigError, match=r"held\.jsonl:2: the image 'no\.png' does not exist"):
        read_named_files(project(place, options))


def test_missing_samples_are_named_with_mixture_and_line(place: Path) -> None:
    write(place / "mix.yml", "data:\n  - {path: a.jsonl}\n  # more\n  - {path: ./b/c.jsonl}\n")
    source = project(place, changed()).sources["mix"]["c"]
    assert source.missing("b/c.jsonl").startswith("mix.yml, line 4: b/c.jsonl does not exist.")


def test_an_experiment_that_is_listed_twice_is_told_so(place: Path) -> None:
    project(place, changed())
    with pytest.raises(ConfigError, match=r"experiments: 0\.yml is listed twice"):
        Project.load({"experiments": ["0.yml", "./0.yml"]})


def test_mistakes_in_prompts_name_the_benchmark(place: Path) -> None:
    found = project(place, changed(), benchmarks=("b",))
    found.benchmarks["b"] = found.benchmarks["b"].model_copy(update={"prompts": "p.jsonl", "check": None})
    write(place / "p.jsonl", '\n{"task_type": "t2i", "instruction": "x"}\n')
    with pytest.raises(ConfigError, match=r"benchmark 'b': p\.jsonl:2: 1 problem\n  - key: is required and missing"):
        found.prompts("b")


def test_a_label_that_a_measures_model_does_not_have_is_met_before_any_job(place: Path) -> None:
    found = project(place, changed(), benchmarks=("b",))
    entry = {"name": "aesthetic", "model": "models/m", "label": "beauty"}
    measures = {"measures": [MeasureEntry(**entry)], "prompts": "p.jsonl", "check": None}
    found.benchmarks["b"] = found.benchmarks["b"].model_copy(update=measures)
    write(place / "p.jsonl", '{"key": "a", "task_type": "t2i", "instruction": "x"}\n')
    read_named_files(found)  # a model that is not there is not measured, which is no mistake
    write(place / "models/m/config.json", '{"id2label": {"0": "plain", "1": "fair"}}')
    with pytest.raises(
        ConfigError, match=r"^benchmark 'b': measures\.label: 'beauty' is no label of models/m; it has pl"
    ):
        read_named_files(found)


def test_the_model_of_a_local_judge_is_met_before_any_job(place: Path) -> None:
    found = project(place, changed(), benchmarks=("b",))
    judges = {"judges": [Judge(name="j", model="./models/m")], "prompts": "p.jsonl", "check": None}
    found.benchmarks["b"] = found.benchmarks["b"].model_copy(update=judges)
    write(place / "p.jsonl", '{"key": "a", "task_type": "t2i", "instruction": "x"}\n')
    with pytest.raises(ConfigError, match=r"^benchmark 'b': judges\.j\.model: '\./models/m' does not exist"):
        read_named_files(found)
    write(place / "models/m/config.json", "{}")
    read_named_files(found)


def test_a_folder_without_safetensors_is_no_model(place: Path) -> None:
    write(place / "m/model.bin", "x")
    with pytest.raises(ValueError, match=r"m: holds no \.safetensors file \(model\.bin is a file of torch\.save"):
        require_weights(place / "m")
    with pytest.raises(ValueError, match="is no folder of weights"):
        require_weights(place / "no")
    with pytest.raises(ValueError, match=r"l\.json: cannot be read: it holds no JSON object"):
        read_json(write(place / "l.json", "[]"))


def test_weights_that_are_not_converted_are_not_looked_for_in_a_network(place: Path) -> None:
    write(place / "experiments/x/checkpoint-4/transformer/conversion.json", "{}")
    tuned = evaluated_weights(
        base(place / "base"), Path("base/transformer"), Path("experiments/x/checkpoint-8/transformer")
    )
    with pytest.raises(ValueError, match=r"checkpoint-8/transformer is missing: .* Converted are checkpoint-4\."):
        require_there(tuned)


def test_images_while_training_know_what_they_are_of(place: Path) -> None:
    for file in ("00000000/a.png", "00000004/a.png", "00000008/a.png", "inputs/a-0.png"):
        write(place / file, "")
    row = {"key": "a", "task_type": "edit", "instruction": "make it red", "inputs": ["inputs/a-0.png"]}
    write(place / "prompts.jsonl", json.dumps(row) + "\n")
    [sample] = read_samples(place)
    assert (sample.instruction, sample.inputs, list(sample.images)) == (
        "make it red",
        [place / "inputs/a-0.png"],
        [0, 8],
    )


def test_shares_of_notes_are_of_samples() -> None:
    summary = {"accepted": 8, "notes": {"a": 2, "b": 2}, "formats": {"PNG": 3, "JPEG": 1}}
    assert (whole_of("notes", summary), whole_of("formats", summary)) == (8, 4)
