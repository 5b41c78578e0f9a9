"""Weights, adapters, tokenizers and chat templates of strangers: nothing runs, hangs or takes all memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import tiny_mllm, tiny_transformer, tiny_vae
from omnitune.conversion.inspect import inspect
from omnitune.io.model_files.weights import read_header, read_weights_header
from omnitune.models import load_lora, lora_config, lora_state_dict, read_lora, read_transformer, save_lora
from omnitune.models.components import LOADERS
from omnitune.models.lora.lora import METADATA_KEY
from omnitune.models.lora.names import PREFIX
from omnitune.models.text import prompts

pytestmark = pytest.mark.unit


def adapter() -> dict[str, torch.Tensor]:
    model = tiny_transformer()
    model.add_adapter(lora_config(4))
    return lora_state_dict(model)


TENSORS = adapter()
MODULE = next(iter(TENSORS)).rpartition(".lora_")[0]


def written(folder: Path, config: object = None, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    """An adapter with this config as its metadata; a text stands as it is."""
    path = folder / "pytorch_lora_weights.safetensors"
    text = config if isinstance(config, str) else json.dumps(config)
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, path, {METADATA_KEY: text})
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 30_000_000}, "say r: 30000000, which is no number"),
        ({"r": 30_000_000, "rank_pattern": {MODULE: 4}}, "say r: 30000000, which is no number"),
        ({"r": 8}, r"say r: 8 of \S+, its tensors have 4"),
        ({"r": 4, "rank_pattern": {"to_q": 30}}, r"say r: 30 of \S+\.to_q, its tensors have 4"),
        ({"r": "4"}, "say r: 4, which is no number"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern holds more than names of modules"),
        ({"no_such_key": 1}, "unknown key 'no_such_key'"),
        ({"alpha_pattern": {"(a+)+$": 8}}, "alpha_pattern holds more than names of modules"),
        ({"alpha_pattern": {"to_q": "x"}}, "alpha_pattern.to_q: x, which is no number"),
        ({"lora_alpha": 1e30}, "lora_alpha: 1e\\+30, which is no number"),
        ({"lora_alpha": [4]}, r"lora_alpha: \[4\], which is no number"),
        ({"use_rslora": "yes"}, "use_rslora: 'yes'"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication: .* not supported"),
        ({"modules_to_save": ["x"]}, "modules_to_save: .* not supported"),
        ({"peft_type": "XLORA"}, "peft_type: XLORA, which is not supported"),
        ("[" * 100_000, "are no JSON"),
        ("[]", "are no object"),
        ("{", "are no JSON"),
    ],
)
def test_metadata_of_an_adapter_are_refused(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"weights.safetensors: .*{message}"):
        read_lora(written(tmp_path, config))


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_a_regular_expression_of_an_adapter_is_not_run(tmp_path: Path, key: str) -> None:
    """Which modules are adapted is said by the tensors; against these names, this expression never ends."""
    config = read_lora(written(tmp_path, {key: r"((\w|\.)+)+!", "lora_alpha": 8, "peft_type": "LORA"}))[1]
    assert config is not None
    assert config["lora_alpha"] == 8
    assert config["target_modules"] == sorted({name.rpartition(".lora_")[0] for name in TENSORS})
    load_lora(tiny_transformer(), tmp_path)


@pytest.mark.parametrize("ranks", [(4, 5), (0, 0)])
def test_factors_that_are_no_pair_are_refused(tmp_path: Path, ranks: tuple[int, int]) -> None:
    first = next(name for name in TENSORS if name.endswith("lora_A.weight"))
    other = first.replace("lora_A", "lora_B")
    wrong = TENSORS | {first: torch.zeros(ranks[0], 48), other: torch.zeros(48, ranks[1])}
    with pytest.raises(ValueError, match="are no pair of an adapter"):
        read_lora(written(tmp_path, {}, wrong))


def test_an_adapter_for_another_width_is_refused(tmp_path: Path) -> None:
    wide = {name: torch.zeros(4, 64) if "lora_A" in name else torch.zeros(64, 4) for name in TENSORS}
    with pytest.raises(
        ValueError, match=r"belongs to a model of another size: .* takes 48 features to .*, the adapter 64"
    ):
        load_lora(tiny_transformer(), written(tmp_path, {}, wide))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_refused_at_loading(tmp_path: Path, value: float) -> None:
    name = next(iter(TENSORS))
    broken = TENSORS[name].clone()
    broken[0, 0] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        read_lora(written(tmp_path, {}, TENSORS | {name: broken}))
    model = tiny_transformer()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    model.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match=r"transformer: .* holds NaN or infinity"):
        read_transformer(tmp_path / "transformer")


def damaged(kind: str, whole: bytes) -> bytes:
    return {
        "is empty": b"",
        "pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "file of torch.save": b"PK\x03\x04" + bytes(100),
        "cut off": whole[:-1],
        "it is cut off": whole[:40],
        "longer than its tensors": whole + b"\0",
        "no such file": b"\xff" * 64,
        "header is damaged": (64).to_bytes(8, "little") + b"{" * 64,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["is empty", "pointer of git-lfs", "file of torch.save", "cut off", "it is cut off", "longer than its tensors",
     "no such file", "header is damaged"],
)  # fmt: skip
def test_damaged_weights_are_one_sentence(tmp_path: Path, kind: str) -> None:
    """In an adapter, and in a part of a pipeline folder."""
    save_lora(tmp_path, TENSORS)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(ValueError, match=rf"weights.safetensors: cannot be read as a .safetensors file: .*{kind}"):
        read_lora(path)
    with pytest.raises(ValueError, match=kind):
        read_transformer(tmp_path)


def test_a_bin_is_no_adapter(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "adapter.bin")
    with pytest.raises(ValueError, match=r"adapter\.bin: .* is a file of torch.save"):
        read_lora(tmp_path / "adapter.bin")


def test_whole_weights_have_a_header(tmp_path: Path) -> None:
    shapes, metadata, _ = read_header(written(tmp_path, {}))
    assert shapes == {PREFIX + name: list(tensor.shape) for name, tensor in TENSORS.items()}
    assert metadata[METADATA_KEY] == "{}"


def test_code_of_a_tokenizer_is_neither_run_nor_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any) -> str:
        raise AssertionError("a question in a job")

    monkeypatch.setattr("builtins.input", asked)
    folder = tmp_path / "processor"
    folder.mkdir()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'appeared')!r}, 'w')\nclass Own: pass\n")
    for name in ("Own", "Qwen2Tokenizer"):
        config = {"tokenizer_class": name, "auto_map": {"AutoTokenizer": ["own.Own", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: (tokenizer_class|auto_map): .* is not allowed"):
            prompts.load_tokenizer(tmp_path)
    assert not (tmp_path / "appeared").exists()


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """0x80 is the first byte of a pickle, and of the length of one header in 32."""
    for length in range(200):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"text": "x" * length})
        if (tmp_path / "x.safetensors").read_bytes().startswith(b"\x80"):
            break
    assert read_header(tmp_path / "x.safetensors").shapes == {"a": [1]}
    assert length < 199


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """The libraries take them for numbers, which mean nothing."""
    message = r"\.safetensors: '[a-z_.0-9A-Z]+' holds numbers of (I32|BOOL|C64), which weights are not"
    adapter_file = written(tmp_path, {}, {name: tensor.to(dtype) for name, tensor in TENSORS.items()})
    for read in (read_lora, inspect):
        with pytest.raises(ValueError, match=message):
            read(adapter_file)
    for part, model in {"transformer": tiny_transformer(), "vae": tiny_vae(), "mllm": tiny_mllm()}.items():
        model.save_pretrained(tmp_path / part)
        [path] = (tmp_path / part).glob("*.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            LOADERS[part](tmp_path, torch.float32)
    for place in (tmp_path / "transformer", tmp_path / "transformer/diffusion_pytorch_model.safetensors"):
        with pytest.raises(ValueError, match=message):
            inspect(place)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_floating_point_numbers_of_all_sizes_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    read_lora(written(tmp_path, {}, {name: tensor.to(dtype) for name, tensor in TENSORS.items()}))
    tiny_transformer().save_pretrained(tmp_path / "transformer")
    path = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert read_transformer(path.parent).dtype == torch.float32


def test_whole_numbers_that_other_programs_keep_are_taken(tmp_path: Path) -> None:
    alphas = {f"{name.removesuffix('.lora_A.weight')}.alpha": torch.tensor(4) for name in TENSORS if ".lora_A" in name}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({PREFIX + name: tensor for name, tensor in (TENSORS | alphas).items()}, path)
    read_lora(path)
    save_file({"embeddings.position_ids": torch.arange(4)}, tmp_path / "model.safetensors")
    assert read_weights_header(tmp_path / "model.safetensors").dtypes == {"embeddings.position_ids": "I64"}
