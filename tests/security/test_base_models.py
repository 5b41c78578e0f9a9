"""JSON of a base model's parts with values that no class takes: a sentence with file and key, no memory for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from helpers.models import tiny_mllm, tiny_transformer, tiny_vae
from omnitune.io.json_object import read_json
from omnitune.io.model_files.part_configs import PARTS, read_part
from omnitune.io.model_files.tokenizer import SETTINGS_FILE
from omnitune.models.components import LOADERS, load_scheduler, load_text_encoder, load_vae, read_transformer
from omnitune.models.text.prompts import load_tokenizer
from omnitune.pretrained.files import check_encoder, check_parts

pytestmark = pytest.mark.unit

ODD: list[tuple[str, str, Any]] = [
    ("transformer", "multiple_of", 0),
    ("transformer", "axes_dim_rope", "x"),
    ("transformer", "axes_lens", [1, 2]),
    ("transformer", "num_layers", True),
    ("transformer", "num_layers", 10**9),
    ("transformer", "hidden_size", -48),
    ("transformer", "norm_eps", "1e-5"),
    ("transformer", "timestep_scale", None),
    ("vae", "block_out_channels", 8),
    ("vae", "layers_per_block", 10**9),
    ("vae", "scaling_factor", 0),
    ("vae", "shift_factor", "x"),
    ("vae", "_class_name", 3),
    ("mllm", "architectures", "x"),
    ("mllm", "num_hidden_layers", -1),
    ("mllm", "text_config", 5),
    ("mllm", "text_config.hidden_size", 2.5),
    ("mllm", "vision_config.depth", 10**9),
    ("mllm", "vision_config.num_hidden_layers", 10**9),
    ("mllm", "vision_config.head_dim", 10**9),
    ("mllm", "num_labels", 3_000_000),
    ("mllm", "text_config.num_labels", "x"),
    ("mllm", "vision_config.num_labels", 10**9),
    ("mllm", "text_config.head_dim", 10**9),
    ("mllm", "text_config.partial_rotary_factor", 1e9),
    ("mllm", "rope_scaling.partial_rotary_factor", 0.5),
    ("mllm", "text_config.rope_parameters.mrope_section", None),
    ("mllm", "text_config.rope_parameters.rope_type", "longrope"),
    ("mllm", "auto_map", {"AutoModel": "own.Own"}),
    ("mllm", "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("mllm", "transformers_weights", "other.safetensors"),
    ("mllm", "fusion_config", {"patch_embeddings": True}),
    ("mllm", "configuration_files", ["config.4.0.0.json"]),
    ("mllm", "attn_implementation", "stranger/kernel:attend"),
    ("mllm", "text_config._attn_implementation", "stranger/kernel"),
    ("mllm", "vision_config._experts_implementation", "stranger/kernel"),
    ("mllm", "torch_dtype", "load"),
    ("mllm", "text_config.dtype", 5),
    ("vae", "quantization_config", {"quant_method": "torchao"}),
    ("transformer", "quantization_config", {"quant_method": "gguf"}),
    ("scheduler", "num_train_timesteps", 10**12),
    ("scheduler", "dynamic_time_shift", "yes"),
    ("scheduler", "_class_name", []),
    ("processor", "tokenizer_class", 5),
    ("processor", "chat_template", 5),
    ("processor", "model_max_length", "x"),
    ("processor", "added_tokens_decoder", [1]),
    ("processor", "eos_token", 7),
    ("processor", "pad_token", None),
    ("processor", "padding_side", "up"),
    ("processor", "truncation_side", "left"),
    ("processor", "split_special_tokens", True),
    ("processor", "add_prefix_space", True),
    ("processor", "add_bos_token", True),
    ("processor", "fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
    ("processor", "gguf_file", "words.gguf"),
]


def write_config(folder: Path, part: str, content: dict[str, Any]) -> Path:
    path = folder / part / (SETTINGS_FILE if part == "processor" else PARTS[part][0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("part", "key", "value"), ODD)
def test_a_value_that_no_class_takes_is_named(tmp_path: Path, part: str, key: str, value: Any) -> None:
    """Before any job, and by whoever loads the part."""
    content: Any = value
    for name in reversed(key.split(".")):
        content = {name: content}
    path = write_config(tmp_path, part, content)
    if part in {"transformer", "vae", "mllm"}:
        (path.parent / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    loaders: dict[str, Any] = {
        "transformer": lambda folder: read_transformer(folder / "transformer"),
        "vae": load_vae,
        "mllm": load_text_encoder,
        "scheduler": load_scheduler,
        "processor": load_tokenizer,
    }
    for read in (lambda folder: check_parts(folder, [part], "model.pretrained_model_path"), loaders[part]):
        with pytest.raises(
            ValueError, match=rf"{path}: ([a-z_]+\.)*{key.rsplit('.', maxsplit=1)[-1]}: .* is not allowed: "
        ) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_a_tokenizer_beside_a_text_encoder_is_looked_at(tmp_path: Path) -> None:
    write_config(tmp_path, "mllm", {})
    (tmp_path / "mllm/model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (tmp_path / "mllm/tokenizer_config.json").write_text('{"tokenizer_class": 1}')
    with pytest.raises(ValueError, match=r"mllm/tokenizer_config\.json: tokenizer_class: 1 is not allowed"):
        check_encoder(tmp_path / "mllm", "model.pretrained_text_encoder_model_name_or_path")


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_no_file_holds_is_not_made(tmp_path: Path) -> None:
    """The library would fill it with random numbers, of any size."""
    tiny_transformer().save_pretrained(tmp_path / "transformer")
    changed(tmp_path / "transformer/config.json", num_layers=30)
    tiny_vae().save_pretrained(tmp_path / "vae")
    changed(tmp_path / "vae/config.json", layers_per_block=30)
    tiny_mllm().save_pretrained(tmp_path / "mllm")
    changed(tmp_path / "mllm/config.json", text_config=None)  # that of 7 billion parameters, then
    for part, load in (("transformer", None), ("vae", load_vae), ("mllm", load_text_encoder)):
        with pytest.raises(ValueError, match=rf"{part}/config\.json: asks for \d+ numbers, .* hold \d+\."):
            load(tmp_path) if load else read_transformer(tmp_path / part)


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("mllm", {"text_config": {"head_dim": 1000}}, "head_dim: 1000 is not hidden_size by num_attention_heads, 128"),
        ("mllm", {"text_config": {"hidden_size": 4096}}, r"mrope_section: \[16, 24, 24\] must add up to half of 64"),
        (
            "mllm",
            {"rope_scaling": {"mrope_section": [9, 9, 9]}},
            r"mrope_section: \[9, 9, 9\] must add up to half of 128",
        ),
        (
            "vae",
            {"layers_per_block": 100, "up_block_types": ["UpDecoderBlock2D"] * 32},
            "layers_per_block: 100 is not allowed in 32 blocks: these are more than 256 layers",
        ),
    ],
)
def test_values_that_do_not_fit_each_other_are_named(
    tmp_path: Path, part: str, content: dict[str, Any], message: str
) -> None:
    """The library would fail in the middle of drawing, or after minutes."""
    path = write_config(tmp_path, part, content)
    (path.parent / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    for read in ({"vae": load_vae, "mllm": load_text_encoder}[part], lambda folder: check_parts(folder, [part], "key")):
        with pytest.raises(ValueError, match=rf"{path}: {message}"):
            read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        {
            "text_config": {"head_dim": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "hidden_size": 9,
        },
        {"num_labels": 2},
        {},
    ],
)
def test_published_forms_of_a_text_encoder_are_taken(tmp_path: Path, content: dict[str, Any]) -> None:
    path = write_config(tmp_path, "mllm", content)
    assert read_part(path.parent, "mllm") == content


@pytest.mark.parametrize("part", ["vae", "mllm"])
def test_a_lost_tensor_is_never_left_at_random(tmp_path: Path, part: str) -> None:
    """Each of these is far below the half that would be noticed by its size."""
    {"vae": tiny_vae, "mllm": tiny_mllm}[part]().save_pretrained(tmp_path / part)
    [path] = (tmp_path / part).glob("*.safetensors")
    tensors = load_file(path)
    lost = min(tensors, key=lambda name: tensors[name].numel())
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: its files lack 1 tensors of the model, such as [a-z_.0-9]+\.bias"):
        {"vae": load_vae, "mllm": load_text_encoder}[part](tmp_path)


@pytest.mark.parametrize("part", ["transformer", "vae", "mllm"])
def test_a_tensor_of_another_shape_is_named(tmp_path: Path, part: str) -> None:
    """The libraries advise to call them otherwise."""
    {"transformer": tiny_transformer, "vae": tiny_vae, "mllm": tiny_mllm}[part]().save_pretrained(tmp_path / part)
    [path] = (tmp_path / part).glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("norm.weight") or "norm" in name)
    save_file({**tensors, name: tensors[name][:1].clone()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: {name} has the shape \[1\], and config\.json asks for \[\d+\]\."):
        LOADERS[part](tmp_path, torch.float32)


def test_what_a_library_says_names_the_folder(tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    assert isinstance(load_vae(tmp_path), AutoencoderKL)
    changed(tmp_path / "vae/config.json", act_fn="x")
    with pytest.raises(ValueError, match=r"/vae: cannot be loaded \(ValueError: activation function x not found"):
        load_vae(tmp_path)
    (tmp_path / "processor").mkdir()
    (tmp_path / "processor/tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"/processor: holds no tokenizer: neither tokenizer\.json nor vocab\.json"):
        load_tokenizer(tmp_path)


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    """The library would put it into the model, and loads the model that it names where it finds no other."""
    path = write_config(tmp_path, "mllm", {})
    (path.parent / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (path.parent / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/model"}')
    for read in (load_text_encoder, lambda folder: check_encoder(folder / "mllm", "key")):
        with pytest.raises(ValueError, match=r"mllm/adapter_config\.json: an adapter does not belong into"):
            read(tmp_path)
    (path.parent / "adapter_config.json").unlink()
    (path.parent / "model.safetensors").rename(path.parent / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"of-00001\.safetensors: is a part of a distributed checkpoint, which is not"):
        load_text_encoder(tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Of these, readers take different ones."""
    (tmp_path / "config.json").write_text('{"a": 1, "b": [{"c": [1], "c": [1]}], "a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1, "b": [{"c": [1]}]}
    for text in ('{"a": 1, "b": 2, "a": 3}', '{"b": [{"a": 1, "a": true}]}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: cannot be read: the key 'a' stands twice in it\."):
            read_json(tmp_path / "config.json")


def test_a_chat_template_in_json_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "processor"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = type("Tokenizer", (), {"chat_template": None})
    monkeypatch.setattr("omnitune.models.text.prompts._tokenizer", lambda source: tokenizer())
    for content in ("{}", '{"chat_template": [1]}'):
        (folder / "chat_template.json").write_text(content)
        with pytest.raises(ValueError, match=r"chat_template\.json: chat_template: is missing or no text"):
            load_tokenizer(tmp_path)
