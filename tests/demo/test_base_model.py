"""The demo's base model: the same bytes every time, a folder that loads, a VAE that reconstructs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from omnitune.demo.base_model import TRANSFORMER_CONFIG, build_base_model, build_transformer
from omnitune.demo.check import check_scene
from omnitune.demo.dataset import draw_drafts
from omnitune.demo.expectation import expectation
from omnitune.demo.scenes import render
from omnitune.demo.text_encoder import TELLING_WORDS
from omnitune.demo.train_vae import orthogonalised
from omnitune.demo.vae import WEIGHTS
from omnitune.images.resize import target_size
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.text.features import apply_chat_template, encode_text

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "demo"
    build_base_model(path)
    return path


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_exact_contents(folder: Path) -> None:
    assert set(hashes(folder)) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "mllm/config.json",
        "mllm/generation_config.json",
        "mllm/model.safetensors",
        "processor/tokenizer.json",
        "processor/tokenizer_config.json",
        "processor/chat_template.jinja",
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert index["transformer"] == ["omnigen2.models.transformers.transformer_omnigen2", "OmniGen2Transformer2DModel"]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {name for name in index if name[0] != "_"}


def test_two_builds_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    torch.rand(3)
    build_base_model(tmp_path / "again")
    assert hashes(folder) == hashes(tmp_path / "again")


def test_the_shipped_transformer_is_in_the_folder_and_predicts(folder: Path) -> None:
    model, untrained = OmniGen2Transformer2DModel.from_pretrained(folder / "transformer"), build_transformer()
    assert 1e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 5e6
    assert model.config.hidden_size == TRANSFORMER_CONFIG["hidden_size"]
    with torch.no_grad():
        text = torch.randn(1, 7, TRANSFORMER_CONFIG["text_feat_dim"])
        arguments = (torch.randn(1, 4, 8, 8), torch.tensor([0.3]), text, None)
        output = model(*arguments).sample
        assert output.shape == (1, 4, 8, 8) and output.std() > 0.1
        assert not untrained(*arguments).sample.any()


@pytest.mark.slow
def test_prompts_are_short_and_features_tell_words_apart(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    assert tokenizer.padding_side == "right" and tokenizer.pad_token == "<|endoftext|>"
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "mllm")
    embeddings = torch.nn.functional.normalize(encoder.get_input_embeddings().weight, dim=-1)
    for task in ("t2i", "edit", "in_context", "background"):
        for draft in draw_drafts(task, 0)[1][:5]:
            text = apply_chat_template(tokenizer, draft.instruction)
            tokens = tokenizer(text, return_tensors="pt")
            assert tokens.input_ids.shape[1] <= 32
            assert tokenizer.decode(tokens.input_ids[0]) == text
            features, _ = encode_text(encoder, tokenizer, [draft.instruction])
            assert features.shape[-1] == TRANSFORMER_CONFIG["text_feat_dim"]
            words = [token for token in tokens.input_ids[0] if tokenizer.decode([token]).strip() in TELLING_WORDS]
            found = (features[0] @ embeddings.T).argmax(-1)
            assert words and [token for token in tokens.input_ids[0] if embeddings[token].any()] == words
            assert [k for k, token in zip(found, tokens.input_ids[0], strict=True) if token in words] == words


def test_a_dropped_prompt_has_no_features(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "mllm")
    features, mask = encode_text(encoder, tokenizer, ["make the circle green."], True)
    assert mask.sum() == 3 and not features.any()


def test_text_outside_the_demo_survives_the_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    text = "Ein schöner Kater, 42 Jahre alt 🐈 这张图片"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.slow
def test_vae_reconstructs_heldout_images(folder: Path) -> None:
    """PSNR of 25 dB and more at the training size, latents of about unit scale, and the check still passes."""
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    assert WEIGHTS.stat().st_size <= 1_000_000
    ratios, passed, latents = [], [], []
    drafts = [draft for task in ("t2i", "edit", "in_context") for draft in draw_drafts(task, 0)[1][:30]]
    for draft in drafts:
        width, height = draft.size
        size = target_size(width, height, 4096, 2048)
        image = render(draft.output, width, height).resize(size, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            posterior = vae.encode(pixels / 127.5 - 1).latent_dist
            decoded = ((vae.decode(posterior.mode()).sample.clamp(-1, 1) + 1) * 127.5).round()
        latents.append(((posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor).flatten())
        ratios.append(10 * torch.log10(255**2 / (decoded - pixels).square().mean()).item())
        output = Image.fromarray(decoded[0].byte().permute(1, 2, 0).numpy())
        passed.append(check_scene(output, expectation(draft.output, *draft.size))["passed"])
    assert np.mean(ratios) >= 25
    assert np.mean(passed) >= 0.98
    values = torch.cat(latents)
    assert abs(values.mean().item()) < 0.15 and 0.8 < values.std().item() < 1.2


def test_muon_step_is_near_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((8, 4, 3, 3), (64, 4, 1, 1)):
        matrix = orthogonalised(torch.randn(shape)).flatten(1)
        values = torch.linalg.svdvals(matrix) / max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        assert values.min() > 0.5 and values.max() < 1.3
