"""What each program that weights are written for makes of them: the outputs of what was trained."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.conversions import (
    RANK,
    adapters_of,
    lora_model,
    options_for,
    predict,
    random_model,
    start_of,
    write_checkpoint,
)
from helpers.models import tiny_pipeline
from omnitune.conversion.adapters import Adapter, folded, merged
from omnitune.conversion.export import convert
from omnitune.conversion.formats import comfyui, diffusers
from omnitune.conversion.tensors import Digest, LazyTensor, open_safetensors, write_safetensors
from omnitune.conversion.verify import verify_adapter, verify_model
from omnitune.conversion.write import Target
from omnitune.models import OmniGen2Pipeline, OmniGen2Transformer2DModel, load_lora

pytestmark = pytest.mark.unit

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ("attn.to_q", "linear_1")
MODULES = 10  # that these are in the small model
KINDS = [{}, {"use_rslora": True}, {"use_dora": True}]  # each with alpha 8 at rank 4, or at its root


def converted(tmp_path: Path, format: str, kind: dict[str, bool], **others: Any) -> tuple[Path, dict[str, Any], Any]:
    """A folder of this format, its conversion.json, and the model that was trained."""
    model = lora_model(TARGETS, **kind)
    write_checkpoint(adapters_of(model), tmp_path / "checkpoint-3", "distributed")
    asked = {f"lora_{key}": value for key, value in kind.items()}
    options = options_for(lora=True, alpha=8, lora_target_modules=["attn.to_q", "*linear_1"], **asked)
    random_model().save_pretrained(tmp_path / "start")
    scale = others.pop("scale", 1.0)
    target = Target(format, **others)
    report = convert(
        options, tmp_path / "checkpoint-3", tmp_path / "out", tmp_path / "start", target=target, scale=scale
    )
    return tmp_path / "out", report, model


def published(folder: Path) -> OmniGen2Transformer2DModel:
    """As the published script does: names and tensors, no metadata."""
    model = random_model()
    model.load_lora_adapter(load_file(folder / FILE), prefix="transformer")
    return model


def by_diffusers(folder: Path) -> OmniGen2Transformer2DModel:
    model = random_model()
    model.load_lora_adapter(folder, prefix="transformer", use_safetensors=True)
    return model


def by_peft(folder: Path) -> Any:
    return PeftModel.from_pretrained(random_model(), folder)


def ours(folder: Path) -> OmniGen2Transformer2DModel:
    model = random_model()
    load_lora(model, folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_the_same_in_each_program(tmp_path: Path, kind: dict[str, bool]) -> None:
    folder, report, model = converted(tmp_path, "diffusers", kind)
    expected = predict(model)
    assert (expected - predict(random_model())).abs().max() > 0.01
    for load in (published, by_diffusers, by_peft, ours):
        found = predict(load(folder))
        assert torch.allclose(found, expected, atol=1e-5), load.__name__
    with safe_open(folder / FILE, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said["transformer.lora_alpha"] == said["transformer.r"] == RANK, "the scale is in lora_B"
    assert said["transformer.use_rslora"] is False
    assert report["loads_in"] == ["omnitune", "published code", "diffusers", "peft"]
    assert [found["read_as"] for found in report["verified"]] == report["loads_in"][1:]
    assert all(found["modules"] == MODULES and found["difference"] < 1e-6 for found in report["verified"])


def patched(path: Path) -> OmniGen2Transformer2DModel:
    """The model with an adapter in it as ComfyUI patches weights: strength x alpha / rank x up x down."""
    tensors, model = load_file(path), random_model()
    weights = model.state_dict()
    used = set()
    for name, weight in weights.items():
        stem = f"diffusion_model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in tensors:
            down, up = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
            alpha = tensors.get(f"{stem}.alpha")
            scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
            weight.add_(scale * (up @ down))
            used |= {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"}
    assert used == tensors.keys(), "no key is left over"
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_adapter_for_comfyui_has_its_scale_in_alpha(tmp_path: Path, kind: dict[str, bool]) -> None:
    folder, report, model = converted(tmp_path, "comfyui", kind)
    assert {path.name for path in folder.iterdir()} == {"README.md", "comfyui_lora.safetensors", "conversion.json"}
    assert torch.allclose(predict(patched(folder / "comfyui_lora.safetensors")), predict(model), atol=1e-5)
    assert report["loads_in"] == ["omnitune", "ComfyUI"]


def test_a_dora_goes_into_comfyui_merged(tmp_path: Path) -> None:
    folder, report, model = converted(tmp_path, "comfyui", {"use_dora": True})
    state = load_file(folder / "comfyui_model.safetensors")
    merged = random_model()
    merged.load_state_dict(state)
    assert torch.allclose(predict(merged), predict(model), atol=1e-5)
    assert (report["merged"], report["kind"], report["loads_in"]) == ([1.0], "lora", ["ComfyUI"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_the_model_with_its_adapter(tmp_path: Path, kind: dict[str, bool]) -> None:
    folder, report, model = converted(tmp_path, "merged", kind, max_shard_size="100KB")
    assert (folder / "diffusion_pytorch_model.safetensors.index.json").is_file()
    merged = OmniGen2Transformer2DModel.from_pretrained(folder)
    assert torch.allclose(predict(merged), predict(model), atol=1e-5)
    [verified] = report["verified"]
    assert (verified["tensors"], verified["modules"]) == (len(random_model().state_dict()), MODULES)


def test_a_merge_may_be_weaker(tmp_path: Path) -> None:
    folder, report, model = converted(tmp_path, "merged", {}, scale=0.5)
    merged = OmniGen2Transformer2DModel.from_pretrained(folder)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    assert torch.allclose(predict(merged), predict(model), atol=1e-5)
    assert report["merged"] == [0.5]


def test_a_merge_in_bfloat16_is_that_of_float32_rounded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    exact = load_file(converted(tmp_path / "a", "merged", {})[0] / "diffusion_pytorch_model.safetensors")
    folder, report, _ = converted(tmp_path / "b", "merged", {}, dtype="bf16")
    for name, tensor in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name
    assert report["dtype"] == "bfloat16"


def test_a_full_model_for_comfyui_is_one_file_of_published_names(tmp_path: Path) -> None:
    model = random_model()
    write_checkpoint(model.state_dict(), tmp_path / "checkpoint-3", "bin")
    target = Target("comfyui", dtype="bf16", max_shard_size="1KB")
    convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path), target=target)
    state = load_file(tmp_path / "out/comfyui_model.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor.to(torch.bfloat16)) for name, tensor in model.state_dict().items())


def test_a_pipeline_folder_loads_and_names_what_can_be_imported(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    state = {name: tensor + 0.5 for name, tensor in pipeline.transformer.state_dict().items()}
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    target = Target("pipeline", base=tmp_path / "base")
    for _ in range(2):  # again, in place of the first
        report = convert(
            options_for(), tmp_path / "checkpoint-3", tmp_path / "out", tmp_path / "base/transformer", target=target
        )
    loaded = OmniGen2Pipeline.from_pretrained(tmp_path / "out")
    for name, tensor in loaded.transformer.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert report["files"].keys() == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    } - {"conversion.json"}
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    for name, (library, classname) in ((k, v) for k, v in index.items() if not k.startswith("_")):
        assert (tmp_path / "out" / name).is_dir()
        if not library.startswith("omnigen2."):  # the published code's own, which its script has
            assert hasattr(import_module(library), classname)
    (tmp_path / "base/vae/config.json").rename(tmp_path / "config.json")
    (tmp_path / "base/vae/diffusion_pytorch_model.safetensors").rename(tmp_path / "x")
    (tmp_path / "base/vae").rmdir()
    with pytest.raises(ValueError, match="base: lacks vae; it is not a pipeline folder"):
        convert(
            options_for(), tmp_path / "checkpoint-3", tmp_path / "new", tmp_path / "base/transformer", target=target
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda adapter: Adapter(adapter.tensors, {module: 2 * alpha for module, alpha in adapter.alphas.items()}),
        lambda adapter: Adapter(dict(list(adapter.tensors.items())[2:]), adapter.alphas),
    ],
)
def test_a_failed_verification_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Adapter], Adapter]
) -> None:
    write = comfyui.write_adapter
    monkeypatch.setattr(comfyui, "write_adapter", lambda folder, adapter, facts: write(folder, spoil(adapter), facts))
    with pytest.raises(ValueError, match=r"as read by ComfyUI: (.* gives other outputs|after reading, missing)"):
        converted(tmp_path, "comfyui", {})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "start"}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_scale_of_a_weak_adapter_is_found(tmp_path: Path, dora: bool, dtype: torch.dtype) -> None:
    """Of one that adds little, the outputs over usual weights would not show it in few digits."""
    tensors = {"to_q.lora_A.weight": torch.randn(4, 32), "to_q.lora_B.weight": 1e-6 * torch.randn(24, 4)}
    tensors |= {"to_q.lora_magnitude_vector": torch.rand(24)} if dora else {}
    adapter = Adapter({name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, {"to_q": 8.0})
    right = folded(adapter)
    for written, fits in ((right, True), (adapter, False)):  # the programs take alpha / rank for 1
        rounded = {name: tensor.to(dtype) for name, tensor in written.tensors.items()}
        diffusers.write_adapter(tmp_path, Adapter(rounded, right.alphas), ["to_q"], {})
        with nullcontext() if fits else pytest.raises(ValueError, match="to_q gives other outputs"):
            verify_adapter(tmp_path, adapter, dtype, ["published code", "diffusers", "peft"])


def test_a_weak_adapter_that_a_merge_has_lost_is_found() -> None:
    torch.manual_seed(0)
    base = {"to_q.weight": LazyTensor.of(torch.randn(64, 64).to(torch.bfloat16))}
    tensors = {"to_q.lora_A.weight": torch.randn(4, 64), "to_q.lora_B.weight": 3e-4 * torch.randn(64, 4)}
    adapter = Adapter({name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, {"to_q": 4.0})
    exact = merged(base, [(adapter, 1.0)])
    for state, fits in ((exact, True), (base, False)):
        written = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        expected = {name: Digest.of(tensor) for name, tensor in written.items()}
        with nullcontext() if fits else pytest.raises(ValueError, match=r"to_q gives .* weights are others"):
            verify_model("omnitune", written, expected, base, [(adapter, 1.0)])


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    state = random_model().state_dict()
    state["x_embedder.bias"][1] = 1e6
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    arguments = options_for(), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path)
    with pytest.raises(ValueError, match=r"x_embedder\.bias: holds NaN or infinity as F16; .* take bf16 or fp32"):
        convert(*arguments, target=Target(dtype="fp16"))
    assert not (tmp_path / "out").exists()
    assert convert(*arguments, target=Target(dtype="bf16"))["dtype"] == "bfloat16"


def test_a_format_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    arguments = options_for(), tmp_path / "checkpoint-3", tmp_path / "out", start_of(tmp_path)
    with pytest.raises(ValueError, match=r"are for adapters, but train\.lora_ft is false"):
        convert(*arguments, target=Target("merged"))
    with pytest.raises(ValueError, match="give the folder of the base pipeline"):
        convert(*arguments, target=Target("pipeline"))
    (tmp_path / "lora").mkdir()
    with pytest.raises(ValueError, match=r"scale: 0\.5 is for formats that an adapter is merged in; diffusers keeps"):
        converted(tmp_path / "lora", "diffusers", {}, scale=0.5)


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.tensor(2.5),
        "half": torch.randn(7).to(torch.bfloat16),
        "none": torch.zeros(0, 4),
        "turned": torch.randn(4, 6).T,
    }
    write_safetensors(tmp_path / "x", {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, {"k": "v"})
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}
    opened = open_safetensors(tmp_path / "x")
    assert (opened["b"].shape, opened["half"].dtype) == ((3, 5), torch.bfloat16)
