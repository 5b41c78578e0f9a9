"""Configuration: published files load, mistakes are named, reference and schema are in step."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from helpers.projects import changed, write
from omnitune.config import Benchmark, ExperimentOptions, Mixture, WorkflowConfig, evaluation_folders, load_config
from omnitune.config.experiment.options import require_processes, without_meaning
from omnitune.config.reference import reference_files
from omnitune.errors import ConfigError
from omnitune.paths import BASE, EvaluatedStep, weights_name

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).parents[2]
# The published options file ft_lora.yml, in its own spelling and with its YAML quirks (a float that YAML reads as
# text).
PUBLISHED = """
name: ft_lora
seed: 2233
device_specific_seed: true
workder_specific_seed: true
data:
  data_path: data_configs/train/example/mix.yml
  use_chat_template: true
  maximum_text_tokens: 888
  prompt_dropout_prob: !!float 0.0001
  ref_img_dropout_prob: !!float 0.5
  max_output_pixels: 1048576 # 1024 * 1024
  max_input_pixels: [1048576, 1048576, 589824, 262144]
  max_side_length: 2048
model:
  pretrained_vae_model_name_or_path: black-forest-labs/FLUX.1-dev
  pretrained_text_encoder_model_name_or_path: Qwen/Qwen2.5-VL-3B-Instruct
  pretrained_model_path: OmniGen2/OmniGen2
  arch_opt:
    patch_size: 2
    in_channels: 16
    hidden_size: 2520
    num_layers: 32
    num_refiner_layers: 2
    num_attention_heads: 21
    num_kv_heads: 7
    multiple_of: 256
    norm_eps: !!float 1e-05
    axes_dim_rope: [40, 40, 40]
    axes_lens: [10000, 10000, 10000]
    text_feat_dim: 2048
    timestep_scale: !!float 1000
transport:
  snr_type: lognorm
  do_shift: true
  dynamic_time_shift: true
train:
  global_batch_size: 16
  batch_size: 2
  gradient_accumulation_steps: 1
  max_train_steps: 4000
  dataloader_num_workers: 6
  learning_rate: !!float 8e-7
  scale_lr: false
  lr_scheduler: timm_constant_with_warmup
  warmup_t: 500
  warmup_lr_init: 1e-18
  warmup_prefix: true
  t_in_epochs: false
  use_8bit_adam: false
  adam_beta1: 0.9
  adam_beta2: 0.95
  adam_weight_decay: !!float 0.01
  adam_epsilon: !!float 1e-08
  max_grad_norm: 1
  gradient_checkpointing: true
  set_grads_to_none: true
  allow_tf32: false
  mixed_precision: 'bf16'
  ema_decay: 0.0
  lora_ft: true
  lora_rank: 8
  lora_dropout: 0
val:
  validation_steps: 500
  train_visualization_steps: 100
logger:
  log_with: [wandb, tensorboard]
  checkpointing_steps: 1000
  checkpoints_total_limit: ~
cache_dir:
resume_from_checkpoint: latest
"""


def problem(tmp_path: Path, **sections: object) -> str:
    path = write(tmp_path / "options.yml", changed(**sections))
    with pytest.raises(ConfigError) as error:
        ExperimentOptions.load(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_published_file_loads_as_it_is(tmp_path: Path) -> None:
    options = ExperimentOptions.load(write(tmp_path / "ft_lora.yml", PUBLISHED))
    assert options.train.learning_rate == 8e-7
    assert options.train.warmup_lr_init == 1e-18
    assert options.data.max_input_pixels == [1048576, 1048576, 589824, 262144]
    assert options.logger.trackers == ["wandb", "tensorboard"]
    assert options.train.num_processes == 8
    assert weights_name(options.train.lora_ft) == "transformer_lora"
    assert options.checkpoint_steps == [1000, 2000, 3000, 4000]


def test_templates_hold_the_published_values() -> None:
    full = ExperimentOptions.load(PROJECT / "config/options/ft.yml")
    lora = ExperimentOptions.load(PROJECT / "config/options/ft_lora.yml")
    assert full.model.arch_opt is not None
    assert (full.model.arch_opt.hidden_size, full.model.arch_opt.num_layers) == (2520, 32)
    assert (full.train.learning_rate, lora.train.learning_rate) == (8e-7, 1e-4)
    assert (full.train.lora_ft, lora.train.lora_ft) == (False, True)
    assert full.transport.snr_type == "lognorm"
    assert full.transport.dynamic_time_shift
    assert full.data.max_input_pixels == [1048576, 1048576, 589824, 262144]


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    message = problem(tmp_path, train={"learning_rat": 1.0}, data={"max_ouput_pixels": 4096}, loger={})
    assert "train.learning_rat: unknown key. Did you mean 'learning_rate'?" in message
    assert "data.max_ouput_pixels: unknown key. Did you mean 'max_output_pixels'?" in message
    assert "loger: unknown key. Did you mean 'logger'?" in message
    assert message.startswith(f"{tmp_path / 'options.yml'}: 3 problems")


def test_key_in_the_wrong_section_is_told_the_right_one(tmp_path: Path) -> None:
    message = problem(tmp_path, train={"max_output_pixels": 4096, "seed": 1}, lora_ft=True)
    assert "train.max_output_pixels: unknown key. Did you mean 'data.max_output_pixels'?" in message
    assert "train.seed: unknown key. Did you mean 'seed'?" in message
    assert "lora_ft: unknown key. Did you mean 'train.lora_ft'?" in message


def test_values_out_of_range_name_key_value_and_rule(tmp_path: Path) -> None:
    message = problem(tmp_path, train={"learning_rate": -1}, transport={"snr_type": "cosine"})
    assert "train.learning_rate: -1 is not allowed: input should be greater than 0" in message
    assert "transport.snr_type: 'cosine' is not allowed: input should be 'lognorm', 'uniform'," in message


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"global_batch_size": 5}}, "global_batch_size: 5 is no multiple of batch_size 2"),
        ({"model": {"pretrained_model_path": "experiments/a/checkpoint-5/transformer_lora"}}, "is a LoRA adapter"),
        ({"model": {"arch_opt": {"hidden_size": 100}}}, "must equal the sum of axes_dim_rope"),
        ({"data": {"max_input_pixels": []}}, "data.max_input_pixels: [] is not allowed"),
        ({"train": {"ema_decay": 1.0}}, "train.ema_decay: 1.0 is not allowed"),
        (
            {"train": {"use_8bit_adam": True, "optimizer": "muon"}},
            "train.use_8bit_adam: true contradicts optimizer: 'muon'",
        ),
        ({"train": {"lr_step_rules": "1:5"}}, "train.lr_step_rules: belongs to lr_scheduler: 'piecewise_constant'"),
        (
            {"train": {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:9,0.5:4,0.1"}},
            "train.lr_step_rules: the steps of '1:9,0.5:4,0.1' must rise",
        ),
        ({"train": {"adam_beta2": 1.0}}, "train.adam_beta2: 1.0 is not allowed"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate: inf is not allowed"),
        (
            {"train": {"lr_scheduler": "piecewise_constant", "lr_step_rules": "-1:9,nan"}},
            "train.lr_step_rules: the factors of '-1:9,nan' must be finite",
        ),
        ({"train": {"hsdp_shard_size": 2}}, "train.hsdp_shard_size: is for parallelism: 'hsdp', not 'fsdp'"),
        *(
            (
                {"train": {"optimizer": name, "global_batch_size": 8, "parallelism": parallelism}},
                f"train.optimizer: '{name}' is not allowed with parallelism: '{parallelism}' over several processes",
            )
            for name, parallelism in (("prodigy", "fsdp"), ("adafactor", "hsdp"), ("adamw_8bit", "fsdp"))
        ),
        ({"train": {"lora_path": "a"}}, "train.lora_path: needs lora_ft: true"),
        (
            {"train": {"lora_ft": True, "parameter_groups": [{"pattern": "*"}]}},
            "train.parameter_groups: is for training",
        ),
        ({"name": "../x"}, "name: '../x' is not allowed"),
    ],
)
def test_combinations_that_cannot_work(tmp_path: Path, sections: dict[str, object], expected: str) -> None:
    assert expected in problem(tmp_path, **sections)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "line 1"),
        ("- 1", "the top level must be a mapping"),
        ("", "found nothing"),
    ],
)
def test_files_that_are_no_yaml_mapping(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ExperimentOptions.load(write(tmp_path / "options.yml", text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ExperimentOptions.load(tmp_path / "none.yml")


def test_processes_must_fit_the_batch() -> None:
    options = ExperimentOptions.model_validate(changed(train={"global_batch_size": 8, "batch_size": 2}))
    require_processes(options, 4, "x.yml")
    with pytest.raises(ConfigError, match=r"global_batch_size: 8 .* Start 4 processes"):
        require_processes(options, 3, "x.yml")


def test_identity_is_what_decides_the_weights() -> None:
    base = ExperimentOptions.model_validate(changed()).identity
    for same in (
        {"logger": {"checkpointing_steps": 5}},
        {"train": {"max_train_steps": 9}},
        {"val": {"validation_steps": 1}},
        {"data": {"max_reject_fraction": 0.5}},
    ):
        assert ExperimentOptions.model_validate(changed(**same)).identity == base
    assert base["train.learning_rate"] == 8e-7, "keys stand by their full names"
    for other in ({"train": {"learning_rate": 1.0}}, {"seed": 1}, {"data": {"max_output_pixels": 4096}}):
        assert ExperimentOptions.model_validate(changed(**other)).identity != base


def test_averages_are_evaluated_beside_the_weights() -> None:
    train = {"max_train_steps": 10, "ema_decay": 0.9, "lora_ft": True}
    options = ExperimentOptions.model_validate(
        changed(train=train, logger={"checkpointing_steps": 5}, val={"evaluate_checkpoints": "all"})
    )
    assert options.evaluated_steps == [5, 10]
    assert list(map(str, options.evaluated)) == ["5", "5-ema", "10", "10-ema"]
    assert weights_name(options.train.lora_ft, ema=True) == "transformer_lora_ema"
    assert list(map(str, evaluation_folders(Path("x"), options))) == ["0", "5", "5-ema", "10", "10-ema"]
    plain = ExperimentOptions.model_validate(changed(train={"max_train_steps": 10}))
    assert plain.evaluated == [EvaluatedStep(10)]


def test_names_of_evaluated_steps() -> None:
    for text, label in (("0", "base"), ("500", "step 500"), ("500-ema", "step 500 (EMA)")):
        step = EvaluatedStep.parse(text)
        assert (str(step), step.label) == (text, label)
    found = sorted([EvaluatedStep(10), EvaluatedStep(5, True), BASE, EvaluatedStep(5)])
    assert [str(step) for step in found] == ["0", "5", "5-ema", "10"]
    for text in ("", "ema", "5-", "-5", "5-ema/x"):
        with pytest.raises(ValueError, match="is not allowed"):
            EvaluatedStep.parse(text)


def test_a_path_into_another_project_is_no_experiment_of_this_one() -> None:
    model = {"pretrained_model_path": "/elsewhere/experiments/first/checkpoint-10/transformer"}
    assert ExperimentOptions.model_validate(changed(model=model)).model.upstream is None


def test_reference_and_schemas_are_in_step() -> None:
    for path, content in reference_files().items():
        assert (PROJECT / path).read_text(encoding="utf-8") == content, f"{path} is stale; type `omnitune schema`"


def test_every_key_is_described() -> None:
    def check(model: type, where: str) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{where}.{name}"

    for model in (ExperimentOptions, Benchmark, Mixture, WorkflowConfig):
        check(model, model.__name__)


@pytest.mark.parametrize(
    "path", sorted(str(p.relative_to(PROJECT)) for p in (PROJECT / "config").rglob("*.y*ml")), ids=lambda p: p
)
def test_shipped_files_load_and_name_their_schema(path: str) -> None:
    kinds = {"options": ExperimentOptions, "data": Mixture, "benchmarks": Benchmark}
    model = next((m for folder, m in kinds.items() if f"config/{folder}/" in path), WorkflowConfig)
    load_config(PROJECT / path, model)
    first = (PROJECT / path).read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    schema = (PROJECT / path).parent / first.split("=", 1)[1]
    jsonschema.validate(yaml.safe_load((PROJECT / path).read_text()), json.loads(schema.read_text()))


def test_no_without_quotes_is_no_and_other_words_are_explained(tmp_path: Path) -> None:
    text = "name: x\ndata: {data_path: mix.yml}\nmodel: {pretrained_model_path: demo}\ntrain: {mixed_precision: %s}\n"
    assert ExperimentOptions.load(write(tmp_path / "x.yml", text % "no")).train.mixed_precision == "no"
    for word in ("yes", "on", "'off'", "true"):
        with pytest.raises(ConfigError, match="name a precision: bf16, fp16 or fp32"):
            ExperimentOptions.load(write(tmp_path / "x.yml", text % word))


@pytest.mark.parametrize("seed", [-1, 2**63, 10**20])
def test_seeds_are_those_that_torch_takes(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        ExperimentOptions.model_validate(changed(seed=seed))
    with pytest.raises(ValueError, match="seed"):
        Benchmark.model_validate({"prompts": "p.jsonl", "seed": seed})
    ExperimentOptions.model_validate(changed(seed=2**63 - 1))


def test_keys_of_the_published_trainer_are_read(tmp_path: Path) -> None:
    """What nothing follows from is said, a line each."""
    text = PUBLISHED.replace("seed: 2233", "seed: null\nsame_seed_per_epoch: true")
    text = text.replace("resume_from_checkpoint: latest", "resume_from_checkpoint: experiments/x/checkpoint-500")
    text = text.replace("log_with: [wandb, tensorboard]", "log_with: all").replace(
        "t_in_epochs: false", "t_in_epochs: true"
    )
    text = text.replace("allow_tf32: false", "allow_tf32: false\n  benchmark_cudnn: true\n  num_train_epochs: 3")
    text = text.replace("  arch_opt:", "  resize_token_embeddings: true\n  vae_subfolder: vae\n  arch_opt:")
    text = text.replace("  validation_steps: 500", "  validation_steps: 500\n  num_train_visualization_samples: 3")
    options = ExperimentOptions.load(write(tmp_path / "options.yml", text))
    assert (options.seed, options.val.visualization_samples, options.train.benchmark_cudnn) == (2233, 3, True)
    assert options.train.max_train_steps == 4000, "it is set, and holds, as there"
    assert "tensorboard" in options.logger.trackers
    assert [line.partition(":")[0] for line in without_meaning(options)] == [
        "same_seed_per_epoch",
        "model.resize_token_embeddings",
        "train.t_in_epochs",
        "resume_from_checkpoint",
    ]
    assert not list(without_meaning(ExperimentOptions.load(write(tmp_path / "plain.yml", PUBLISHED))))


def test_steps_follow_from_epochs_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", "{}\n" * 30)
    write(tmp_path / "b.jsonl", "{}\n" * 11)
    write(tmp_path / "mix.yml", "data:\n  - {path: a.jsonl}\n  - {path: b.jsonl}\n")
    text = changed(
        data={"data_path": "mix.yml"}, train={"num_train_epochs": 3, "global_batch_size": 8, "batch_size": 1}
    )
    content = yaml.safe_load(text) if isinstance(text, str) else text
    content["train"].pop("max_train_steps", None)
    path = write(tmp_path / "options.yml", yaml.safe_dump(content))
    options = ExperimentOptions.load(path)
    assert options.train.max_train_steps == 16, "123 samples, 8 a step"
    assert options.checkpoint_steps[-1] == 16
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"train\.num_train_epochs: the rows of b\.jsonl cannot be counted, as it is not there"
    ):
        ExperimentOptions.load(path)
