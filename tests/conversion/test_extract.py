"""A LoRA extracted from a full fine-tune: as near as its rank allows, equal in each program, and it says how near."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.conversions import CONFIG, options_for, predict, random_model, write_checkpoint
from omnitune.conversion.adapters import Adapter
from omnitune.conversion.export import convert
from omnitune.conversion.extract import require_rank, verify_extraction
from omnitune.conversion.read import read_published
from omnitune.conversion.tensors import LazyTensor
from omnitune.conversion.write import Target
from omnitune.models import load_lora
from omnitune.models.lora.lora import linear_names
from omnitune.pretrained.transformer import linear_layers, parameter_names

pytestmark = pytest.mark.unit

FILE = "pytorch_lora_weights.safetensors"
PROGRAMS = ["published code", "diffusers", "peft", "ComfyUI"]


def fine_tuned(rank: int | None) -> Any:
    """A model whose linear layers have changed by so many directions, or by all, and nothing else."""
    torch.manual_seed(5)
    model = random_model()
    for name in linear_names(model):
        weight = model.get_submodule(name).weight
        rows, columns = weight.shape
        change = torch.randn(rows, rank) @ torch.randn(rank, columns) if rank else torch.randn(rows, columns)
        weight.data += 0.03 * change
    return model


def extracted(tmp_path: Path, model: Any, **target: Any) -> tuple[Path, dict[str, Any]]:
    write_checkpoint(model.state_dict(), tmp_path / "checkpoint-3", "bin")
    random_model().save_pretrained(tmp_path / "start")
    asked = Target("extracted", **target)
    report = convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "out", tmp_path / "start", target=asked)
    return tmp_path / "out", report


def test_a_change_of_low_rank_is_found_whole_and_loads(tmp_path: Path) -> None:
    model = fine_tuned(3)
    folder, report = extracted(tmp_path, model, rank=4)
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "comfyui_lora.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | {"conversion.json", FILE}
    found = report["extracted"]
    assert (found["rank"], found["outside_of_modules"]) == (4, 0.0)
    assert found["explained_by_module"].keys() == set(linear_names(model))
    assert min(found["explained_by_module"].values()) > 1 - 1e-5 and found["explained"] > 1 - 1e-5
    assert [row["read_as"] for row in report["verified"]] == PROGRAMS == report["loads_in"][1:]
    assert all(row["error"] < 0.003 for row in report["verified"])
    ours, by_diffusers = random_model(), random_model()
    load_lora(ours, folder)
    by_diffusers.load_lora_adapter(folder, prefix="transformer", weight_name=FILE)
    for loaded in (ours, by_diffusers):
        assert torch.allclose(predict(loaded), predict(model), atol=1e-4)
    card = (folder / "README.md").read_text()
    assert "A LoRA of rank 4, with 100.0% of what was changed" in card and "models/loras" in card and "- lora" in card
    tensors = load_file(folder / FILE)
    assert (report["kind"], report["keys"], report["start"]) == ("lora", len(tensors), 0)
    assert report["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    kind = {"use_dora": False, "use_rslora": False, "targets": len(linear_names(model))}
    assert report["lora"] == {"rank": 4, "alpha": 4, **kind}
    assert f"fine-tune of OmniGen2 (from weights of its own); {report['parameters']:,} parameters" in card


def test_what_a_rank_leaves_out_is_said(tmp_path: Path) -> None:
    model = fine_tuned(None)
    model.x_embedder.bias.data += 0.5
    folder, report = extracted(tmp_path, model, rank=4, dtype="bf16")
    base, found = random_model().state_dict(), report["extracted"]
    tensors, state = load_file(folder / FILE), model.state_dict()
    energy = held = worst = 0.0
    for name in linear_names(model):
        change = (state[f"{name}.weight"] - base[f"{name}.weight"]).double()
        kept = torch.linalg.svdvals(change)[:4].square().sum() / change.square().sum()
        assert found["explained_by_module"][name] == pytest.approx(float(kept), abs=2e-3), "the best of this rank"
        factors = [tensors[f"transformer.{name}.lora_{end}.weight"] for end in "BA"]
        assert all(factor.dtype == torch.bfloat16 for factor in factors) and factors[1].shape[0] == 4
        product = factors[0].double() @ factors[1].double()
        worst = max(worst, float((change - product).norm() / change.norm()))
        energy, held = energy + change.square().sum(), held + change.square().sum() - (change - product).square().sum()
    outside = sum((state[name] - base[name]).double().square().sum() for name in state) - energy
    assert found["explained"] == pytest.approx(float(held / (energy + outside)), abs=1e-5)
    assert found["outside_of_modules"] == pytest.approx(float(outside / (energy + outside)), abs=1e-6)
    assert found["outside_of_modules"] > 0 and found["explained"] < 0.9
    assert worst > 0.3
    for row in report["verified"]:
        assert row["error"] == pytest.approx(worst, rel=1e-5) and row["difference"] < 1e-6
    assert f"- peft: largest relative error of a layer's change {worst:.1e}" in (folder / "README.md").read_text()


def test_equal_weights_give_equal_bytes_whatever_was_drawn_before(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = extracted(tmp_path / "a", fine_tuned(None), rank=2)[0]
    torch.rand(7)
    second = extracted(tmp_path / "b", fine_tuned(None), rank=2)[0]
    assert (first / FILE).read_bytes() == (second / FILE).read_bytes()


def test_only_what_was_trained_gets_factors_and_a_rank_beyond_a_layer_is_filled_up(tmp_path: Path) -> None:
    model, base = random_model(), random_model()
    for name in (name for name in linear_names(model) if ".attn." in name):
        model.get_submodule(name).weight.data += 0.01 * torch.randn_like(model.get_submodule(name).weight)
    base.save_pretrained(tmp_path / "start")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".attn." in name}
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    options = options_for(parameter_groups=[{"pattern": "*.attn.*", "learning_rate": 1e-4}])
    target = Target("extracted", rank=64)
    report = convert(options, tmp_path / "checkpoint-3", tmp_path / "out", tmp_path / "start", target=target)
    found = report["extracted"]["explained_by_module"]
    assert found.keys() == {name for name in linear_names(model) if ".attn." in name}
    assert min(found.values()) > 1 - 1e-6
    load_lora(base, tmp_path / "out")
    assert torch.allclose(predict(base), predict(model), atol=1e-4)


def factors_of(folder: Path, rank: int) -> Adapter:
    """What the published file holds, which the others are to add, too."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / FILE).items()}
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name]
    return Adapter({name: LazyTensor.of(one) for name, one in tensors.items()}, dict.fromkeys(modules, rank))


def state_of(model: Any) -> Any:
    return {name: LazyTensor.of(tensor) for name, tensor in model.state_dict().items()}


def test_what_is_read_otherwise_is_found(tmp_path: Path) -> None:
    """A factor or a scale that is off by a hundredth, of layers that have changed and of one that has not."""
    model, same = fine_tuned(3), "layers.0.attn.to_q"
    model.get_submodule(same).weight.data = random_model().get_submodule(same).weight.data
    folder, _ = extracted(tmp_path, model, rank=4)
    arguments = factors_of(folder, 4), state_of(model), read_published(tmp_path / "start"), PROGRAMS
    verify_extraction(folder, *arguments)
    for file in (FILE, "adapter_model.safetensors", "comfyui_lora.safetensors"):
        content, whole = (folder / file).read_bytes(), load_file(folder / file)
        factor, *_ = (name for name in sorted(whole) if name.endswith("lora_B.weight"))
        for name in [factor, *(name for name in sorted(whole) if name.endswith(".alpha"))][:2]:
            save_file({**whole, name: whole[name] * 1.01}, folder / file)
            with pytest.raises(ValueError, match=r"as read by .* adds something else than its factors, by 0\.01 of it"):
                verify_extraction(folder, *arguments)
        grown = {name: torch.ones_like(one) for name, one in whole.items() if f"{same}.lora_" in name}
        save_file({**whole, **grown}, folder / file)
        with pytest.raises(ValueError, match=rf"{same} adds something else than its factors, by inf of it"):
            verify_extraction(folder, *arguments)
        save_file({name: one for name, one in whole.items() if name != factor.replace("_B", "_A")}, folder / file)
        with pytest.raises(ValueError, match=r"was written, published code, diffusers, peft, ComfyUI find"):
            verify_extraction(folder, *arguments)
        (folder / file).write_bytes(content)


@pytest.mark.parametrize("name", ["layers.0.attn.to_q.weight", "x_embedder.bias"])
def test_a_change_that_is_not_finite_is_named(tmp_path: Path, name: str) -> None:
    model = fine_tuned(3)
    model.get_parameter(name).data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=rf"^{name}: what training has changed in it holds NaN or infinity"):
        extracted(tmp_path, model, rank=4)
    assert not (tmp_path / "out").exists()


def test_an_extraction_needs_a_linear_layer_that_was_trained(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in random_model().state_dict().items() if "norm_q" in name}
    write_checkpoint(state, tmp_path / "checkpoint-3", "bin")
    random_model().save_pretrained(tmp_path / "start")
    options = options_for(parameter_groups=[{"pattern": "*norm_q*"}])
    with pytest.raises(
        ValueError, match=r"train\.parameter_groups: trains no weight of a linear layer, .* Take extracted"
    ):
        convert(options, tmp_path / "checkpoint-3", tmp_path / "out", tmp_path / "start", target=Target("extracted"))


def test_linear_layers_are_known_by_the_names_of_parameters() -> None:
    assert linear_layers(parameter_names(CONFIG)) == sorted(linear_names(random_model()))


def test_an_extraction_needs_all_weights_and_what_they_started_from(tmp_path: Path) -> None:
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "bin")
    arguments = tmp_path / "checkpoint-3", tmp_path / "out"
    with pytest.raises(ValueError, match=r"extracted is for all weights, but train\.lora_ft is true"):
        convert(options_for(lora=True), *arguments, None, target=Target("extracted"))
    (tmp_path / "start").mkdir()
    config = json.dumps(dict(random_model().config))
    (tmp_path / "start/config.json").write_text(config)
    with pytest.raises(ValueError, match="start"):
        convert(options_for(), *arguments, tmp_path / "start", target=Target("extracted"))
    assert not (tmp_path / "out").exists()


def test_a_rank_that_no_layer_has_is_refused() -> None:
    shapes = {"a.weight": (800, 40), "b.weight": (90, 70), "c.weight": (99, 99)}
    require_rank(shapes, ["a", "b"], 70)
    with pytest.raises(ValueError, match=r"rank: 71 is not allowed .*: a LoRA of rank 70 has all of each layer"):
        require_rank(shapes, ["a", "b"], 71)


@pytest.mark.parametrize("size", ["x", "-5GB", "1e400GB", "1B", "0GB"])
def test_a_size_of_files_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=rf"max_shard_size: '{size}' is not allowed: needs KB, MB or GB, as in 5GB"):
        Target(max_shard_size=size)
