"""Checkpoints of every written form become folders that load, and nothing that does not fit gets through."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.conversions import (
    CONFIG,
    RANK,
    adapters_of,
    lora_model,
    options_for,
    predict,
    random_model,
    start_of,
    write_checkpoint,
    write_distributed,
)
from omnitune.checkpoints.states import TrainerState, check_files
from omnitune.cli.weights import convert as convert_by_command
from omnitune.conversion.export import convert
from omnitune.conversion.read import read_checkpoint, read_published
from omnitune.conversion.tensors import Digest, LazyTensor
from omnitune.conversion.verify import verify_model
from omnitune.conversion.write import Target
from omnitune.io.files import sha256_of
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora.lora import published_name
from omnitune.paths import MODEL_FOLDER, STATE_FILE, weights_name

pytestmark = pytest.mark.unit


@pytest.mark.slow
@pytest.mark.parametrize("form", ["distributed", "wrapped", "bin", "old_bin", "safetensors"])
def test_full_checkpoint_becomes_a_folder_with_the_same_outputs(tmp_path: Path, form: str) -> None:
    model = random_model()
    write_checkpoint(model.state_dict(), tmp_path / "checkpoint-3", form)
    target = tmp_path / "checkpoint-3" / "transformer"
    report = convert(options_for(), tmp_path / "checkpoint-3", target, start_of(tmp_path))
    loaded = OmniGen2Transformer2DModel.from_pretrained(target)
    assert torch.equal(predict(loaded), predict(model))
    files = {"README.md", "config.json", "conversion.json", "diffusion_pytorch_model.safetensors"}
    assert {path.name for path in target.iterdir()} == files
    assert report == json.loads((target / "conversion.json").read_text())
    assert report["checkpoint_sha256"] is None, "the checkpoint says nothing of itself"
    assert report["keys"] == len(model.state_dict())
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert str(tmp_path) not in (target / "conversion.json").read_text()
    assert not list(tmp_path.rglob("*.partial"))


def test_full_checkpoint_in_shards_and_in_another_dtype(tmp_path: Path) -> None:
    model = random_model()
    write_checkpoint(model.state_dict(), tmp_path / "checkpoint-3", "bin")
    target = tmp_path / "transformer"
    report = convert(
        options_for(),
        tmp_path / "checkpoint-3",
        target,
        start_of(tmp_path),
        target=Target(dtype="bf16", max_shard_size="100KB"),
    )
    assert (target / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert report["dtype"] == "bfloat16"
    loaded = OmniGen2Transformer2DModel.from_pretrained(target, torch_dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16)), name


def test_converting_again_gives_the_same_bytes_and_replaces(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    target = tmp_path / "transformer"
    convert(options_for(), tmp_path / "checkpoint-3", target, start_of(tmp_path), target=Target(max_shard_size="100KB"))
    first = json.loads((target / "conversion.json").read_text())
    convert(options_for(), tmp_path / "checkpoint-3", target, start_of(tmp_path), target=Target(max_shard_size="100KB"))
    assert json.loads((target / "conversion.json").read_text()) == first
    convert(options_for(), tmp_path / "checkpoint-3", target, start_of(tmp_path))
    assert not (target / "diffusion_pytorch_model.safetensors.index.json").exists()


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "mine", start_of(tmp_path))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    (tmp_path / "mine" / "thesis.tex").rename(tmp_path / "mine" / "README.md")
    with pytest.raises(ValueError, match=r"holds README\.md, which no conversion wrote"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "mine", start_of(tmp_path))


def test_weights_of_others_are_never_replaced(tmp_path: Path) -> None:
    """They have the names of ours. Beside the state of a training lies what the rule writes anew."""
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    theirs = tmp_path / "theirs/transformer"
    random_model(1).save_pretrained(theirs)
    before = sha256_of(theirs / "diffusion_pytorch_model.safetensors")
    arguments = options_for(), tmp_path / "checkpoint-3", theirs, start_of(tmp_path)
    with pytest.raises(ValueError, match=r"theirs/transformer: holds weights without conversion\.json"):
        convert(*arguments)
    assert sha256_of(theirs / "diffusion_pytorch_model.safetensors") == before
    (tmp_path / "theirs" / STATE_FILE).write_text("{}")
    convert(*arguments)
    assert (theirs / "conversion.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["distributed", "bin", "safetensors"])
@pytest.mark.parametrize("with_base", [False, True])
def test_lora_checkpoint_becomes_an_adapter_with_the_same_outputs(tmp_path: Path, form: str, with_base: bool) -> None:
    model = lora_model()
    state = model.state_dict() if with_base else adapters_of(model)
    write_checkpoint(state, tmp_path / "checkpoint-3", form)
    target = tmp_path / "checkpoint-3" / "transformer_lora"
    report = convert(options_for(lora=True, alpha=8), tmp_path / "checkpoint-3", target, start_of(tmp_path))
    assert {path.name for path in target.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "conversion.json",
        "pytorch_lora_weights.safetensors",
    }
    weights = load_file(target / "pytorch_lora_weights.safetensors")
    assert weights.keys() == {f"transformer.{name.replace('.default', '')}" for name in adapters_of(model)}
    kind = {"use_dora": False, "use_rslora": False}
    assert report["lora"] == {"rank": RANK, "alpha": 8, **kind, "targets": len(adapters_of(model)) // 2}
    assert report["base"] == (len(random_model().state_dict()) if with_base else 0)
    loaded = random_model()
    loaded.load_lora_adapter(target, prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(predict(loaded), predict(model))
    assert not torch.equal(predict(loaded), predict(random_model()))


def test_lora_in_another_dtype_keeps_every_rounded_bit(tmp_path: Path) -> None:
    state = adapters_of(lora_model())
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    report = convert(
        options_for(lora=True),
        tmp_path / "checkpoint-3",
        tmp_path / "lora",
        start_of(tmp_path),
        target=Target(dtype="bf16"),
    )
    assert report["dtype"] == "bfloat16"
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    for name, tensor in state.items():
        assert torch.equal(weights[f"transformer.{name.replace('.default', '')}"], tensor.to(torch.bfloat16))


def test_lora_file_has_a_fixed_header(tmp_path: Path) -> None:
    write_checkpoint(adapters_of(lora_model()), tmp_path / "checkpoint-3", "bin")
    convert(options_for(lora=True), tmp_path / "checkpoint-3", tmp_path / "lora", start_of(tmp_path))
    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert header == {
        "transformer.lora_alpha": RANK,
        "transformer.r": RANK,
        "transformer.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
        "transformer.use_dora": False,
        "transformer.use_rslora": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_kinds_of_adapters_keep_their_outputs(tmp_path: Path, use_dora: bool, use_rslora: bool) -> None:
    model = lora_model(("attn.to_q", "linear_1"), use_dora=use_dora, use_rslora=use_rslora)
    write_checkpoint(adapters_of(model), tmp_path / "checkpoint-3", "distributed")
    asked = {
        "lora_target_modules": ["attn.to_q", "*linear_1"],
        "lora_use_dora": use_dora,
        "lora_use_rslora": use_rslora,
    }
    options = options_for(lora=True, alpha=8, **asked)
    report = convert(options, tmp_path / "checkpoint-3", tmp_path / "lora", start_of(tmp_path))
    parts = 3 if use_dora else 2
    assert report["lora"] == {
        "rank": RANK,
        "alpha": 8,
        "use_dora": use_dora,
        "use_rslora": use_rslora,
        "targets": len(adapters_of(model)) // parts,
    }
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert weights.keys() == {f"transformer.{published_name(name)}" for name in adapters_of(model)}
    loaded = random_model()
    loaded.load_lora_adapter(tmp_path / "lora", prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(predict(loaded), predict(model))
    other = options_for(lora=True, alpha=8, **{**asked, "lora_use_dora": not use_dora})
    with pytest.raises(ValueError, match="unexpected" if use_dora else "missing"):
        convert(other, tmp_path / "checkpoint-3", tmp_path / "other", start_of(tmp_path))


def tuned(names: set[str]) -> tuple[OmniGen2Transformer2DModel, OmniGen2Transformer2DModel]:
    """A starting model, and the same where the parameters of these names were trained."""
    start, model = random_model(), random_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(0.5)
    return start, model


def test_untrained_parameters_come_from_the_start(tmp_path: Path) -> None:
    groups = [{"pattern": "layers.*.attn.*"}, {"pattern": "norm_out.*", "learning_rate": 1e-3}]
    names = {name for name in random_model().state_dict() if name.startswith(("layers.0.attn.", "norm_out."))}
    start, model = tuned(names)
    start.to(torch.bfloat16).save_pretrained(tmp_path / "start")
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    write_checkpoint(state, tmp_path / "checkpoint-3", "distributed")
    options = options_for(parameter_groups=groups)
    report = convert(options, tmp_path / "checkpoint-3", tmp_path / "out", tmp_path / "start")
    assert (report["keys"], report["start"]) == (len(model.state_dict()), len(model.state_dict()) - len(names))
    assert report["dtype"] == "float32"
    for name, tensor in OmniGen2Transformer2DModel.from_pretrained(tmp_path / "out").state_dict().items():
        assert torch.equal(tensor, state[name] if name in names else start.state_dict()[name].float()), name
    with pytest.raises(ValueError, match="parameters untrained: give the folder"):
        convert(options_for(parameter_groups=groups, arch=CONFIG), tmp_path / "checkpoint-3", tmp_path / "lost")


def test_a_checkpoint_of_other_groups_is_refused(tmp_path: Path) -> None:
    state = random_model().state_dict()
    norm = {name: tensor for name, tensor in state.items() if name.startswith("norm_out.")}
    write_checkpoint(norm, tmp_path / "checkpoint-3", "bin")
    write_checkpoint(state, tmp_path / "checkpoint-4", "bin")
    for step, pattern, message in (
        (3, "norm_out.linear_1.*", "2 unexpected: norm_out.linear_2.bias"),
        (3, "*.linear_1.*", "missing: context_refiner.0.feed_forward"),
        (4, "norm_out.*", "unexpected"),
        (3, "norm_oot.*", "train.parameter_groups: 'norm_oot.*' fits no parameter. Near: norm_out"),
    ):
        options = options_for(parameter_groups=[{"pattern": pattern}])
        with pytest.raises(ValueError, match=message):
            convert(options, tmp_path / f"checkpoint-{step}", tmp_path / "out", start_of(tmp_path))


@pytest.mark.parametrize("lora", [False, True])
def test_the_average_is_converted_beside_the_weights(tmp_path: Path, lora: bool) -> None:
    model = lora_model() if lora else random_model()
    state = adapters_of(model) if lora else model.state_dict()
    write_checkpoint(state, tmp_path / "checkpoint-3", "distributed")
    average = {name: tensor + 1 for name, tensor in state.items()}
    write_distributed(average, tmp_path / "checkpoint-3" / "ema_0")
    options = options_for(lora=lora, alpha=8, ema_decay=0.9)
    reports = {}
    for ema in (False, True):
        target = tmp_path / "checkpoint-3" / weights_name(lora, ema)
        reports[ema] = convert(options, tmp_path / "checkpoint-3", target, start_of(tmp_path), ema=ema)
        assert reports[ema]["ema"] == ema
    file = "pytorch_lora_weights.safetensors" if lora else "diffusion_pytorch_model.safetensors"
    weights = load_file(target / file)
    for name, tensor in average.items():
        scale = 2 if "lora_B" in name else 1  # alpha 8 at rank 4
        assert torch.equal(weights[f"transformer.{published_name(name)}" if lora else name], scale * tensor)
    assert target.name == ("transformer_lora_ema" if lora else "transformer_ema")
    assert reports[True]["files"] != reports[False]["files"]


def test_a_checkpoint_without_average_says_so(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    with pytest.raises(ValueError, match=r"holds no averaged weights \(ema_0\).* set train.ema_decay above 0"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path), ema=True)


def test_a_conversion_is_bound_to_the_checkpoint_that_training_saved(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    state = random_model().state_dict()
    write_checkpoint(state, checkpoint, "distributed")
    write_distributed(state, checkpoint / "ema_0")
    files = {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in checkpoint.glob("*/*")}
    identity: dict[str, Any] = {"options": {}, "data": {}}
    (checkpoint / STATE_FILE).write_text(json.dumps(vars(TrainerState(3, identity, None, files=files))))
    asked, options = sha256_of(checkpoint / STATE_FILE), options_for(ema_decay=0.9)
    report = convert(options, checkpoint, checkpoint / "transformer", start_of(tmp_path))
    assert report["checkpoint_sha256"] == asked
    name = next(name for name in files if name.startswith("pytorch_model_fsdp_0/__"))
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"checkpoint-3/{name}: is not what training has saved"):
        convert(options, checkpoint, checkpoint / "transformer", start_of(tmp_path))
    report = convert(options, checkpoint, checkpoint / "transformer_ema", start_of(tmp_path), ema=True)
    assert report["checkpoint_sha256"] == asked, "the average lies in files of its own"
    (tmp_path / "train.json").write_text(json.dumps({"states": {"3": "0" * 64}}))
    with pytest.raises(ValueError, match=r"checkpoint-3: is not the checkpoint that .*train\.json names"):
        convert(options, checkpoint, checkpoint / "transformer_ema", start_of(tmp_path), ema=True)
    assert (checkpoint / "transformer_ema/conversion.json").is_file(), "what was converted stays"


def test_a_mistake_is_told_while_the_checkpoint_is_hashed_and_damage_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    write_checkpoint(adapters_of(lora_model()), checkpoint, "distributed")
    files = {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in checkpoint.glob("*/*")}
    state = TrainerState(3, {"options": {}, "data": {}}, None, files=files)
    (checkpoint / STATE_FILE).write_text(json.dumps(vars(state)))
    weights = next(path for path in checkpoint.glob("*/*.distcp"))
    told = threading.Event()

    def slow(folder: Path, state: TrainerState, names: list[str]) -> None:
        assert names == [f"{MODEL_FOLDER}/.metadata"] or told.wait(60)
        check_files(folder, state, names)

    with monkeypatch.context() as patch:
        patch.setattr("omnitune.conversion.checkpoint.check_files", slow)
        with pytest.raises(ValueError, match=r"LoRA rank is 4, train\.lora_rank is 8"):
            convert(options_for(lora=True, lora_rank=8), checkpoint, tmp_path / "out", start_of(tmp_path))
        told.set()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{weights.name}: is not what training has saved"):
        convert(options_for(lora=True), checkpoint, tmp_path / "out", start_of(tmp_path))


def broken_states() -> dict[str, tuple[bool, dict[str, torch.Tensor], str]]:
    full, lora = random_model().state_dict(), lora_model().state_dict()
    adapters = adapters_of(lora_model())
    name = "layers.0.attn.to_q"
    without = {key: value for key, value in full.items() if not key.startswith("norm_out.")}
    reshaped = {**full, f"{name}.weight": torch.zeros(3, 3)}
    lost_base = {key: value for key, value in lora.items() if key != "x_embedder.bias"}
    half = {key: value for key, value in adapters.items() if key != f"{name}.lora_B.default.weight"}
    narrow = {key: (value[:2] if ".lora_A." in key else value[:, :2]) for key, value in adapters.items()}
    twice = {**adapters, f"{name}.lora_A.weight": adapters[f"{name}.lora_A.default.weight"]}
    return {
        "missing": (False, without, "4 missing: norm_out.linear_1.bias, norm_out"),
        "unexpected": (False, {**full, "extra.weight": torch.zeros(1)}, "1 unexpected: extra.weight"),
        "shape": (False, reshaped, r"to_q.weight is \[3, 3\], needs \[48, 48\]"),
        "adapter in full": (False, lora, "LoRA keys, but train.lora_ft is false"),
        "no adapter": (True, full, "holds no LoRA keys"),
        "half an adapter": (True, half, "1 missing: layers.0.attn.to_q.lora_B.weight"),
        "lost base": (True, lost_base, r"base weights beside the LoRA[\s\S]*1 missing: x_embedder.bias"),
        "rank": (True, narrow, "LoRA rank is 2, train.lora_rank is 4"),
        "twice": (True, twice, "holds this adapter twice"),
    }


@pytest.mark.parametrize("case", list(broken_states()))
def test_every_key_is_accounted_for(tmp_path: Path, case: str) -> None:
    lora, state, message = broken_states()[case]
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    with pytest.raises(ValueError, match=message):
        convert(options_for(lora=lora), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path))
    assert not (tmp_path / "out").exists()


def test_architecture_comes_from_the_options_or_the_base(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    convert(options_for(arch=CONFIG), tmp_path / "checkpoint-3", tmp_path / "out")
    other = {**CONFIG, "num_layers": 2}
    with pytest.raises(ValueError, match="num_layers: 1, the base has 2"):
        convert(options_for(arch=CONFIG), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path, other))
    with pytest.raises(ValueError, match=r"give its folder, with config\.json \(none was given"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out")
    with pytest.raises(ValueError, match="dtype: 'fp8' is not allowed"):
        Target(dtype="fp8")
    with pytest.raises(ValueError, match="format: 'onnx' is not allowed"):
        Target(format="onnx")
    with pytest.raises(ValueError, match="lost: is no folder"):
        read_published(tmp_path / "lost")
    with pytest.raises(ValueError, match=r"--transformer: .*lost is no folder"):
        convert_by_command(
            tmp_path / "o.yml", tmp_path / "checkpoint-3", tmp_path / "out", transformer=tmp_path / "lost"
        )


def test_mixed_dtypes_need_a_decision(tmp_path: Path) -> None:
    state = random_model().state_dict()
    state["x_embedder.bias"] = state["x_embedder.bias"].to(torch.bfloat16)
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    with pytest.raises(ValueError, match=r"several dtypes \(bfloat16, float32\)"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path))


def test_verification_finds_a_changed_bit(tmp_path: Path) -> None:
    model = random_model()
    expected = {name: Digest.of(LazyTensor.of(tensor)) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "full")
    found = verify_model("omnitune", read_published(tmp_path / "full"), expected)
    assert found == {"read_as": "omnitune", "tensors": len(expected), "modules": 0, "difference": 0.0}
    changed = {**expected, "x_embedder.bias": Digest.of(LazyTensor.of(model.x_embedder.bias + 1e-6))}
    with pytest.raises(ValueError, match=r"1 tensors differ after reading: x_embedder\.bias"):
        verify_model("omnitune", read_published(tmp_path / "full"), changed)


def test_files_of_torch_save_that_are_no_weights_are_explained(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    for content in (endless, {3: torch.zeros(1)}, {"a": torch.zeros(1, dtype=torch.complex64)}):
        torch.save(content, tmp_path / "x.bin")
        with pytest.raises(ValueError, match=r"x\.bin: (a|3) are no tensors of numbers with a name"):
            read_checkpoint(tmp_path / "x.bin")
    torch.save({"state": {"model": {"a": torch.zeros(1)}}}, tmp_path / "x.bin")
    assert read_checkpoint(tmp_path / "x.bin").keys() == {"a"}


def test_paths_that_are_no_checkpoint_are_explained(tmp_path: Path) -> None:
    write_checkpoint({"a": torch.zeros(1)}, tmp_path / "checkpoint-3", "bin")
    (tmp_path / "checkpoint-5.tmp").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "bad.safetensors").write_text("x")
    (tmp_path / "bad.bin").write_text("x")
    for name, message in {
        "checkpoint-4": "does not exist. .* holds checkpoint-3",
        "checkpoint-5": "interrupted",
        "checkpoint-5.tmp": "interrupted",
        "empty": "Looked in it for pytorch_model_fsdp_0, .* it holds nothing",
        "note.txt": "is not a checkpoint",
        "bad.safetensors": r"cannot be read as a \.safetensors file: it is cut off",
        "bad.bin": "cannot be read as a file of torch.save",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)


def test_damaged_distributed_checkpoints_are_refused(tmp_path: Path) -> None:
    write_distributed({"a": torch.arange(8.0)}, tmp_path / "dcp")
    assert torch.equal(read_checkpoint(tmp_path / "dcp")["a"].load(), torch.arange(8.0))
    for file in (tmp_path / "dcp").glob("*.distcp"):
        file.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"\.distcp: is missing, which "):
        read_checkpoint(tmp_path / "dcp")["a"].load()
    write_distributed({"a": torch.zeros(1), "step": 3}, tmp_path / "optimizer")
    with pytest.raises(ValueError, match="step are objects, no tensors"):
        read_checkpoint(tmp_path / "optimizer")
    (tmp_path / "optimizer" / ".metadata").unlink()
    with pytest.raises(ValueError, match="never finished"):
        read_checkpoint(tmp_path / "optimizer")


def test_several_model_states_are_ambiguous(tmp_path: Path) -> None:
    write_checkpoint({"a": torch.zeros(1)}, tmp_path / "checkpoint-3", "bin")
    save_file({"a": torch.zeros(1)}, tmp_path / "checkpoint-3" / "model.safetensors")
    with pytest.raises(ValueError, match="several model states"):
        read_checkpoint(tmp_path / "checkpoint-3")
