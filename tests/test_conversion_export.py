"""Checkpoints of every written form become folders that load, and nothing that does not fit gets through."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TRANSFORMER

from omnitune.config import ExperimentOptions
from omnitune.conversion import convert, read_checkpoint, verify
from omnitune.models import OmniGen2Transformer2DModel

pytestmark = pytest.mark.unit

CONFIG: dict[str, Any] = {
    **TRANSFORMER,
    "in_channels": 16,
    "num_layers": 1,
    "axes_dim_rope": [8, 8, 8],
    "axes_lens": [64, 64, 64],
}
RANK = 4


def options_for(
    *, lora: bool = False, alpha: int | None = None, arch: dict[str, Any] | None = None
) -> ExperimentOptions:
    return ExperimentOptions.model_validate(
        {
            "name": "tiny",
            "data": {"data_path": "mix.yml"},
            "model": {"pretrained_model_path": "demo", "arch_opt": arch},
            "train": {"lora_ft": lora, "lora_rank": RANK, "lora_alpha": alpha},
        }
    )


def random_model(seed: int = 0) -> OmniGen2Transformer2DModel:
    torch.manual_seed(seed)
    model = OmniGen2Transformer2DModel(**CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def lora_model() -> OmniGen2Transformer2DModel:
    model = random_model()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adapters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


def predict(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 16, 4, 6, generator=generator)
    text = torch.randn(2, 5, 32, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([0.3, 0.7]), text, None).sample


def write_distributed(state: dict[str, torch.Tensor], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder, no_dist=True)


def write_checkpoint(state: dict[str, torch.Tensor], folder: Path, form: str) -> None:
    folder.mkdir(parents=True)
    if form == "distributed":
        write_distributed(state, folder / "pytorch_model_fsdp_0")
    elif form == "wrapped":
        wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
        write_distributed(wrapped, folder / "pytorch_model_fsdp_0")
    elif form == "bin":
        torch.save(state, folder / "pytorch_model_fsdp.bin")
    elif form == "old_bin":
        torch.save(state, folder / "pytorch_model_fsdp.bin", _use_new_zipfile_serialization=False)
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("form", ["distributed", "wrapped", "bin", "old_bin", "safetensors"])
def test_full_checkpoint_becomes_a_folder_with_the_same_outputs(tmp_path: Path, form: str) -> None:
    model = random_model()
    write_checkpoint(model.state_dict(), tmp_path / "checkpoint-3", form)
    target = tmp_path / "checkpoint-3" / "transformer"
    report = convert(options_for(), tmp_path / "checkpoint-3", target, CONFIG)
    loaded = OmniGen2Transformer2DModel.from_pretrained(target)
    assert torch.equal(predict(loaded), predict(model))
    files = {"config.json", "conversion.json", "diffusion_pytorch_model.safetensors"}
    assert {path.name for path in target.iterdir()} == files
    assert report == json.loads((target / "conversion.json").read_text())
    assert report["keys"] == len(model.state_dict())
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert str(tmp_path) not in (target / "conversion.json").read_text()
    assert not list(tmp_path.rglob("*.partial"))


def test_full_checkpoint_in_shards_and_in_another_dtype(tmp_path: Path) -> None:
    model = random_model()
    write_checkpoint(model.state_dict(), tmp_path / "checkpoint-3", "bin")
    target = tmp_path / "transformer"
    report = convert(options_for(), tmp_path / "checkpoint-3", target, CONFIG, dtype="bf16", max_shard_size="100KB")
    assert (target / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert report["dtype"] == "bfloat16"
    loaded = OmniGen2Transformer2DModel.from_pretrained(target, torch_dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16)), name


def test_converting_again_gives_the_same_bytes_and_replaces(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    target = tmp_path / "transformer"
    convert(options_for(), tmp_path / "checkpoint-3", target, CONFIG, max_shard_size="100KB")
    first = json.loads((target / "conversion.json").read_text())
    convert(options_for(), tmp_path / "checkpoint-3", target, CONFIG, max_shard_size="100KB")
    assert json.loads((target / "conversion.json").read_text()) == first
    convert(options_for(), tmp_path / "checkpoint-3", target, CONFIG)
    assert not (target / "diffusion_pytorch_model.safetensors.index.json").exists()


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "mine", CONFIG)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("form", ["distributed", "bin", "safetensors"])
@pytest.mark.parametrize("with_base", [False, True])
def test_lora_checkpoint_becomes_an_adapter_with_the_same_outputs(tmp_path: Path, form: str, with_base: bool) -> None:
    model = lora_model()
    state = model.state_dict() if with_base else adapters_of(model)
    write_checkpoint(state, tmp_path / "checkpoint-3", form)
    target = tmp_path / "checkpoint-3" / "transformer_lora"
    report = convert(options_for(lora=True, alpha=8), tmp_path / "checkpoint-3", target, CONFIG)
    assert {path.name for path in target.iterdir()} == {"conversion.json", "pytorch_lora_weights.safetensors"}
    weights = load_file(target / "pytorch_lora_weights.safetensors")
    assert weights.keys() == {f"transformer.{name.replace('.default', '')}" for name in adapters_of(model)}
    assert report["lora"] == {"rank": RANK, "alpha": 8}
    assert report["base"] == (len(random_model().state_dict()) if with_base else 0)
    loaded = random_model()
    loaded.load_lora_adapter(target, prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(predict(loaded), predict(model))
    assert not torch.equal(predict(loaded), predict(random_model()))


def test_lora_in_another_dtype_keeps_every_rounded_bit(tmp_path: Path) -> None:
    state = adapters_of(lora_model())
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    report = convert(options_for(lora=True), tmp_path / "checkpoint-3", tmp_path / "lora", CONFIG, dtype="bf16")
    assert report["dtype"] == "bfloat16"
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    for name, tensor in state.items():
        assert torch.equal(weights[f"transformer.{name.replace('.default', '')}"], tensor.to(torch.bfloat16))


def test_lora_file_has_a_fixed_header(tmp_path: Path) -> None:
    write_checkpoint(adapters_of(lora_model()), tmp_path / "checkpoint-3", "bin")
    convert(options_for(lora=True), tmp_path / "checkpoint-3", tmp_path / "lora", CONFIG)
    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert header == {
        "transformer.lora_alpha": RANK,
        "transformer.r": RANK,
        "transformer.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
    }


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
        convert(options_for(lora=lora), tmp_path / "checkpoint-3", tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_architecture_comes_from_the_options_or_the_base(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    convert(options_for(arch=CONFIG), tmp_path / "checkpoint-3", tmp_path / "out")
    other = {**CONFIG, "num_layers": 2}
    with pytest.raises(ValueError, match="num_layers: 1, the base has 2"):
        convert(options_for(arch=CONFIG), tmp_path / "checkpoint-3", tmp_path / "out", other)
    with pytest.raises(ValueError, match=r"give the base's transformer/config\.json"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out")
    with pytest.raises(ValueError, match="dtype: 'fp8' is not allowed"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out", CONFIG, dtype="fp8")


def test_mixed_dtypes_need_a_decision(tmp_path: Path) -> None:
    state = random_model().state_dict()
    state["x_embedder.bias"] = state["x_embedder.bias"].to(torch.bfloat16)
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    with pytest.raises(ValueError, match=r"several dtypes \(bfloat16, float32\)"):
        convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out", CONFIG)


def test_verification_finds_a_changed_bit(tmp_path: Path) -> None:
    model = random_model()
    state = model.state_dict()
    model.save_pretrained(tmp_path / "full")
    verify(tmp_path / "full", state)
    changed = {**state, "x_embedder.bias": state["x_embedder.bias"] + 1e-6}
    with pytest.raises(ValueError, match=r"1 tensors differ after loading: x_embedder\.bias"):
        verify(tmp_path / "full", changed)


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
        "bad.safetensors": "cannot be read as a safetensors file",
        "bad.bin": "cannot be read as a file of torch.save",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)


def test_damaged_distributed_checkpoints_are_refused(tmp_path: Path) -> None:
    write_distributed({"a": torch.arange(8.0)}, tmp_path / "dcp")
    assert torch.equal(read_checkpoint(tmp_path / "dcp")["a"], torch.arange(8.0))
    for file in (tmp_path / "dcp").glob("*.distcp"):
        file.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"a file is missing or damaged: .*No such file"):
        read_checkpoint(tmp_path / "dcp")
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
