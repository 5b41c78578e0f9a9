"""Several adapters, of any tool, become a part of the weights under them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
from omnitune.conversion.export import convert
from omnitune.conversion.inspect import inspect
from omnitune.conversion.merge import merge
from omnitune.conversion.publish import prepare_upload
from omnitune.conversion.write import Target
from omnitune.models import OmniGen2Transformer2DModel, load_lora, lora_state_dict, save_lora

pytestmark = pytest.mark.unit


def test_several_adapters_with_strengths(tmp_path: Path) -> None:
    """One as we write it, one as ComfyUI reads it; peft gives what they come to together."""
    random_model().save_pretrained(tmp_path / "base")
    model = lora_model(("to_q",))
    save_lora(tmp_path / "ours", lora_state_dict(model), model.peft_config["default"])
    other = {name: 0.5 * tensor for name, tensor in lora_state_dict(lora_model(("to_q", "to_v"))).items()}
    named = {f"diffusion_model.{name}": tensor for name, tensor in other.items()}
    modules = {name.rpartition(".lora_")[0] for name in other}
    alphas = {f"diffusion_model.{module}.alpha": torch.tensor(2.0) for module in modules}
    save_file(named | alphas, tmp_path / "theirs.safetensors")
    report = merge(
        tmp_path / "base",
        [tmp_path / "ours", tmp_path / "theirs.safetensors"],
        [0.7, -0.5],
        tmp_path / "out",
        Target("merged"),
    )
    model.load_lora_adapter(other, prefix=None, adapter_name="theirs")  # of scale 1, where alpha / rank is a half
    model.set_adapters(["default", "theirs"], [0.7, -0.25])
    found = OmniGen2Transformer2DModel.from_pretrained(tmp_path / "out")
    assert torch.allclose(predict(found), predict(model), atol=1e-5)
    assert report["merged"] == [0.7, -0.5]
    assert [entry["scale"] for entry in report["adapters"]] == report["merged"]
    assert report["verified"][0]["modules"] == len(modules)
    text = (tmp_path / "out/README.md").read_text()
    assert f"| {report['adapters'][1]['sha256']} | -0.5 |" in text and "--transformer_path FOLDER" in text
    assert str(tmp_path) not in text
    assert prepare_upload(tmp_path / "out", "me/merged").files.keys() > {"README.md", "config.json"}


def test_ranks_of_each_module_have_a_scale_of_1_without_more(tmp_path: Path) -> None:
    """A merge is what the adapter gives where it is loaded."""
    random_model().save_pretrained(tmp_path / "base")
    tensors = lora_state_dict(lora_model(("to_v",)))
    for name in [name for name in tensors if name.startswith("layers.0")]:
        tensors[name] = tensors[name][:2] if "lora_A" in name else tensors[name][:, :2]
    save_lora(tmp_path / "lora", tensors)
    merge(tmp_path / "base", [tmp_path / "lora"], [], tmp_path / "out", Target("merged"))
    model = random_model()
    load_lora(model, tmp_path / "lora")
    by_diffusers = random_model()
    by_diffusers.load_lora_adapter(tmp_path / "lora", prefix="transformer", use_safetensors=True)
    found = predict(OmniGen2Transformer2DModel.from_pretrained(tmp_path / "out"))
    assert torch.allclose(found, predict(model), atol=1e-5)
    assert torch.allclose(found, predict(by_diffusers), atol=1e-5)


def test_a_merge_into_bfloat16_weights_stays_in_them(tmp_path: Path) -> None:
    base = random_model().to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = lora_model(("to_q",))
    save_lora(tmp_path / "lora", lora_state_dict(model), model.peft_config["default"])
    for target in (Target("merged"), Target("comfyui")):
        merge(tmp_path / "base", [tmp_path / "lora"], [], tmp_path / target.format, target)
        [file] = (tmp_path / target.format).glob("*.safetensors")
        state = load_file(file)
        assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
        changed = {name for name, tensor in base.state_dict().items() if not torch.equal(state[name], tensor)}
        assert changed == {f"{name.rpartition('.lora_')[0]}.weight" for name in adapters_of(model)}


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "base")
    save_lora(
        tmp_path / "wide",
        {"x_embedder.lora_A.weight": torch.zeros(RANK, 8), "x_embedder.lora_B.weight": torch.zeros(9, RANK)},
    )
    for base, loras, scales, message in (
        ("base", ["wide"], [], "belongs to a model of another size: x_embedder takes"),
        ("base", ["wide"], [1.0, 2.0], "2 strengths for 1 adapters"),
        ("base", ["wide"], [float("nan")], "--scale: nan is no number"),
        ("base", [], [], "name at least one adapter"),
        ("wide", ["wide"], [], r"--transformer: .*wide/config\.json is missing, which says the architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(tmp_path / base, [tmp_path / name for name in loras], scales, tmp_path / "out", Target("merged"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "base/conversion.json").write_text("{}")
    with pytest.raises(ValueError, match="base is read for this, and would be changed"):
        merge(tmp_path / "base", [tmp_path / "wide"], [], tmp_path / "base", Target("merged"))


def test_what_is_read_is_neither_replaced_nor_added_to(tmp_path: Path) -> None:
    start = start_of(tmp_path)
    write_checkpoint(random_model().state_dict(), tmp_path / "checkpoint-3", "distributed")
    states = {path for path in (tmp_path / "checkpoint-3").iterdir() if path.is_dir()}
    for folder in (*states, start):
        with pytest.raises(ValueError, match=rf"/x: {folder} is read for this, and would be changed"):
            convert(options_for(), tmp_path / "checkpoint-3", folder / "x", start)
    convert(options_for(), tmp_path / "checkpoint-3", tmp_path / "checkpoint-3/transformer", start)
    assert {path for path in (tmp_path / "checkpoint-3").iterdir() if path.is_dir()} - states
    (tmp_path / "whole").mkdir()
    random_model().save_pretrained(tmp_path / "whole/transformer")
    save_lora(tmp_path / "lora", lora_state_dict(lora_model()))
    for folder in ("whole", "whole/transformer/x", "lora/x"):
        with pytest.raises(ValueError, match="is read for this, and would be changed"):
            merge(tmp_path / "whole/transformer", [tmp_path / "lora"], [], tmp_path / folder, Target("merged"))


def test_an_adapter_knows_the_weights_that_it_was_trained_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In any file layout and in bfloat16; over others there is a warning, and no refusal."""
    random_model().save_pretrained(tmp_path / "base")
    random_model().to(torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="20KB")
    random_model(seed=1).save_pretrained(tmp_path / "other")
    write_checkpoint(adapters_of(lora_model(("to_q",))), tmp_path / "checkpoint-3", "bin")
    options = options_for(lora=True, alpha=8, lora_target_modules=["attn.to_q"])
    for format, file in (
        ("diffusers", "adapter_model"),
        ("diffusers", "pytorch_lora_weights"),
        ("comfyui", "comfyui_lora"),
    ):
        convert(options, tmp_path / "checkpoint-3", tmp_path / "lora", tmp_path / "base", target=Target(format))
        adapter = tmp_path / "lora" / f"{file}.safetensors"
        assert inspect(adapter)["base_fingerprint"] == inspect(tmp_path / "half")["weights_fingerprint"]
        for base in ("base", "half"):
            merge(tmp_path / base, [adapter], [], tmp_path / "out", Target("merged"))
        load_lora(lora_model(("to_v",)).to(torch.bfloat16), adapter, adapter_name="second")
        assert "other weights" not in caplog.text
        merge(tmp_path / "other", [adapter], [], tmp_path / "out", Target("merged"))
        load_lora(random_model(seed=1), adapter)
        assert caplog.text.count(f"{adapter}: was trained over other weights") == 2
        caplog.clear()
