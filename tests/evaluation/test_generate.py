"""A tiny pipeline generates, is killed, goes on, and is scored."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import TRANSFORMER
from omnitune.cli import app
from omnitune.config import Benchmark
from omnitune.demo.text_encoder import HIDDEN_SIZE, build_text_encoder, build_tokenizer
from omnitune.evaluation.conditions import Conditions
from omnitune.evaluation.generate import generate, generate_part, load_pipeline
from omnitune.evaluation.loss import heldout_losses, loss_times
from omnitune.evaluation.measures import Case, measure
from omnitune.evaluation.measures_of_pixels import HIGHEST_PSNR
from omnitune.evaluation.prompts import Prompt, open_image, prompt_seed, read_instructions, read_prompts
from omnitune.evaluation.results import read_generations, read_scores
from omnitune.evaluation.scoring import score
from omnitune.evaluation.weights import EvaluatedWeights, describe_weights, evaluated_weights
from omnitune.io.files import is_whole, sha256_of
from omnitune.models import (
    OmniGen2FlowMatchScheduler,
    OmniGen2Pipeline,
    OmniGen2Transformer2DModel,
    lora_config,
    lora_state_dict,
    save_lora,
)
from omnitune.paths import BASE

pytestmark = [pytest.mark.unit, pytest.mark.slow]

CONFIG: dict[str, Any] = {**TRANSFORMER, "in_channels": 16, "num_layers": 1, "text_feat_dim": HIDDEN_SIZE}


def build_pipeline(seed: int = 0) -> OmniGen2Pipeline:
    torch.manual_seed(seed)
    transformer = OmniGen2Transformer2DModel(**CONFIG).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    tokenizer = build_tokenizer()
    mllm = build_text_encoder(tokenizer)
    return OmniGen2Pipeline(transformer, vae, OmniGen2FlowMatchScheduler(), mllm, tokenizer)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(base: Path) -> OmniGen2Pipeline:
    return load_pipeline(base, dtype="fp32", device="cpu")


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    rng = np.random.default_rng(0)
    for name, size in (("in", (48, 32)), ("out", (48, 32)), ("square", (32, 32))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return [
        Prompt("edit-1", "edit", "make the circle red.", (tmp_path / "in.png",), tmp_path / "out.png"),
        Prompt("t2i-1", "t2i", "a red circle.", (), tmp_path / "square.png"),
        Prompt("t2i-2", "t2i", "a blue square at the left."),
    ]


def protocol(**changes: Any) -> Benchmark:
    settings = {"num_inference_steps": 2, "height": 32, "width": 32, "max_pixels": 4096, "dtype": "fp32"}
    return Benchmark(prompts="unused.jsonl", **{"loss_timesteps": 3, **settings, **changes})


def described(base: Path, transformer: Path | None = None) -> dict[str, Any]:
    return describe_weights(EvaluatedWeights(base, transformer, None))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_images_do_not_depend_on_batches_and_parts(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path
) -> None:
    weights = described(base)
    whole = generate(protocol(batch_size=3), prompts, pipeline, tmp_path / "whole", weights=weights)
    cut = protocol(parts=2)
    for part in range(2):
        generate(cut, prompts, pipeline, tmp_path / "cut", weights=weights, part=part)
    assert [row["key"] for row in read_rows(whole)] == ["edit-1", "t2i-1", "t2i-2"]
    assert [row["key"] for row in read_rows(tmp_path / "cut/parts/0.jsonl")] == ["edit-1", "t2i-2"]
    for prompt in prompts:
        one, other = (np.asarray(open_image(tmp_path / f / f"images/{prompt.key}.png"), int) for f in ("whole", "cut"))
        assert abs(one - other).max() <= 1, prompt.key
    row = read_rows(whole)[0]
    assert row["size"] == [48, 32]
    assert row["loss_times"] == pytest.approx([1 / 6, 0.5, 5 / 6])
    assert read_rows(whole)[2]["losses"] is None
    assert {path.name for path in (tmp_path / "whole").rglob("*")} == {
        *("images", "parts", "0.jsonl"),
        *(f"{prompt.key}.png" for prompt in prompts),
    }
    assert str(tmp_path) not in whole.read_text()


def test_a_killed_run_goes_on_where_it_was(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[generate.__module__]
    real: Callable[..., Any] = module._generate_batch
    seen: list[str] = []

    def dying(job: Any, batch: list[Prompt]) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.extend(prompt.key for prompt in batch)
        return real(job, batch)

    weights = described(base)
    arguments = (protocol(), prompts, pipeline, tmp_path / "run")
    monkeypatch.setattr(module, "_generate_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        generate(*arguments, weights=weights)
    assert not (tmp_path / "run/parts/0.jsonl").exists()
    (tmp_path / "run/images/t2i-1.png").write_bytes(b"damaged")
    seen[:] = []
    generate(*arguments, weights=weights)
    assert seen == ["t2i-1", "edit-1"]
    assert [row["key"] for row in read_rows(tmp_path / "run/parts/0.jsonl")] == ["edit-1", "t2i-1", "t2i-2"]


def latents_of(pipeline: OmniGen2Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those of the images that are drawn from now on, in order."""
    found: list[torch.Tensor] = []
    real = pipeline.decode_latent

    def decode_latent(latent: torch.Tensor, size: Any = None) -> torch.Tensor:
        found.append(latent.clone())
        return real(latent, size)

    monkeypatch.setattr(pipeline, "decode_latent", decode_latent)
    return found


def test_latents_are_the_same_whatever_batches_parts_and_restarts(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs of several numbers and sizes, and of several images of a prompt: to 1e-5 in float32."""
    images = ["in.png", "square.png"]
    rows: list[dict[str, Any]] = [
        {"key": "none", "task_type": "t2i", "instruction": "a red circle."},
        {"key": "wide", "task_type": "t2i", "instruction": "a blue square.", "height": 16, "width": 48},
        {"key": "one", "task_type": "edit", "instruction": "make it red.", "input_images": images[:1]},
        {"key": "two", "task_type": "ic", "instruction": "circle 1 beside square 2.", "input_images": images},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def drawn(folder: str, parts: int = 1, only: str = "", **keys: Any) -> dict[str, torch.Tensor]:
        settings = protocol(
            parts=parts, seed=[3, 4], loss_timesteps=0, text_guidance_scale=3.0, image_guidance_scale=2.0, **keys
        )
        own = settings.model_copy(update={"prompts": str(tmp_path / "prompts.jsonl")})
        known = [prompt for prompt in read_prompts(own, Path()) if only in prompt.key]
        latents = latents_of(pipeline, monkeypatch)
        keys_drawn = recorded(monkeypatch)
        for number in range(parts):
            generate(own, known, pipeline, tmp_path / folder, weights=described(base), part=number)
        monkeypatch.undo()
        return dict(zip(keys_drawn, latents, strict=True))

    alone = drawn("alone")
    assert len(alone) == 8
    assert {key: Image.open(tmp_path / f"alone/images/{key}.png").size for key in alone} == {
        **{f"none-{k}": (32, 32) for k in range(2)},
        **{f"wide-{k}": (48, 16) for k in range(2)},
        **{f"one-{k}": (48, 32) for k in range(2)},
        **{f"two-{k}": (32, 32) for k in range(2)},
    }
    assert not torch.equal(alone["none-0"], alone["none-1"])
    others = [drawn("together", batch_size=8), drawn("cut", batch_size=3, parts=2)]
    for key in ("none-1", "one-0", "two-1"):
        (tmp_path / f"together/images/{key}.png").unlink()
    (tmp_path / "together/parts/0.jsonl").rename(tmp_path / "together/parts/.0.unfinished.jsonl")
    again = drawn("together", batch_size=8)
    assert sorted(again) == ["none-1", "one-0", "two-1"]
    for other in (*others, again):
        for key, latent in other.items():
            torch.testing.assert_close(latent, alone[key], rtol=0, atol=1e-5, msg=key)
    assert drawn("square", only="one-0", align_res=False)["one-0"].shape[-2:] == (4, 4)


def test_texts_and_references_are_encoded_once(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the images of a prompt and its held-out loss together."""
    calls: list[Any] = []
    texts, posteriors = pipeline.encode_prompt, pipeline.encode_posterior
    monkeypatch.setattr(pipeline, "encode_prompt", lambda texts_: calls.extend(texts_) or texts(texts_))
    monkeypatch.setattr(
        pipeline, "encode_posterior", lambda image, *a: calls.append(image.size) or posteriors(image, *a)
    )
    draws = [replace(prompts[0], key=f"edit-{k}", line_key="edit-1", draw=k) for k in range(3)]
    settings = protocol(images_per_prompt=3, negative_prompt="ugly")
    generate(settings, draws, pipeline, tmp_path / "run", weights=described(base))
    assert sorted(map(str, calls)) == ["(48, 32)", "(48, 32)", "make the circle red.", "ugly"], "an input and a target"


def test_a_kill_loses_no_image_that_has_its_name(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a batch: what is there is noted, and what is noted and not there is drawn."""
    arguments, weights = (protocol(batch_size=3), prompts, pipeline, tmp_path / "run"), described(base)
    replaced: list[str] = []
    real = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if target.suffix == ".png":
            if len(replaced) == 1:
                raise KeyboardInterrupt
            replaced.append(target.stem)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        generate(*arguments, weights=weights)
    monkeypatch.undo()
    assert [path.stem for path in (tmp_path / "run/images").glob("[!.]*")] == replaced
    first = (tmp_path / f"run/images/{replaced[0]}.png").stat().st_ctime_ns
    drawn = recorded(monkeypatch)
    generate(*arguments, weights=weights)
    assert sorted([*drawn, *replaced]) == ["edit-1", "t2i-1", "t2i-2"]
    assert (tmp_path / f"run/images/{replaced[0]}.png").stat().st_ctime_ns == first


def test_an_input_that_is_no_image_is_named(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path
) -> None:
    prompts[0].input_images[0].write_text("no image")
    with pytest.raises(ValueError, match=r"in\.png: cannot be read as an image"):
        generate(protocol(), prompts, pipeline, tmp_path / "run", weights=described(base))


def test_an_image_that_is_not_finite_is_missing_and_no_score(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, weights = tmp_path / "run", described(base)
    real = pipeline.decode_latent
    for damaged in (lambda latent: latent * float("nan"), lambda latent: latent * float("inf")):
        module = sys.modules[generate.__module__]
        sample = module._sample

        def broken(job: Any, batch: Any, sample: Any = sample, damaged: Any = damaged) -> Any:
            latents = sample(job, batch)
            return [damaged(x) if p.key == "t2i-1" else x for p, x in zip(batch, latents, strict=True)]

        monkeypatch.setattr(module, "_sample", broken)
        part = generate(protocol(), prompts, pipeline, output, weights=weights)
        monkeypatch.undo()
        row = read_rows(part)[1]
        assert (row["key"], row["image"], row["failed"]) == ("t2i-1", None, "its numbers are not finite")
        assert not (output / "images/t2i-1.png").exists()
        scores = score(protocol(), prompts, [part], output, name="mine", step=BASE, weights=weights)
        assert (scores["prompts"], scores["missing"]) == (3, 1)
        assert scores["per_prompt"][1] == {
            **{"key": "t2i-1", "task_type": "t2i", "category": None},
            "failed": "its numbers are not finite",
        }
        assert scores["means"]["psnr"] == scores["per_prompt"][0]["psnr"], "of what there is"
        assert list(read_generations(output, scores)) == ["edit-1", "t2i-1", "t2i-2"]
        part.rename(part.with_name(".0.unfinished.jsonl"))
    drawn = recorded(monkeypatch)
    monkeypatch.setattr(pipeline, "decode_latent", lambda *a: real(*a) * float("nan"))
    part = generate(protocol(), prompts, pipeline, output, weights=weights)
    assert drawn == ["t2i-1"], "and it is tried again"
    assert read_rows(part)[1]["image"] is None, "as the decoder may fail, too"


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the prompts that are drawn from now on."""
    module = sys.modules[generate.__module__]
    real: Callable[..., Any] = module._generate_batch
    drawn: list[str] = []

    def generate_batch(job: Any, batch: list[Prompt]) -> Any:
        drawn.extend(prompt.key for prompt in batch)
        return real(job, batch)

    monkeypatch.setattr(module, "_generate_batch", generate_batch)
    return drawn


def test_a_lost_part_is_made_again_from_the_images_that_are_there(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held stands in generations.jsonl."""
    output, weights, settings = tmp_path / "run", described(base), protocol(parts=2)

    def run(part: int, **changes: Any) -> Path:
        return generate(settings, prompts, pipeline, output, part=part, **{"weights": weights, **changes})

    parts = [run(part) for part in range(2)]
    assert all(is_whole(row) for part in parts for row in read_rows(part))
    score(settings, prompts, parts, output, name="mine", step=BASE, weights=weights)
    first = {path: path.read_bytes() for path in [*parts, *output.glob("images/*")]}
    drawn = recorded(monkeypatch)
    parts[0].unlink()
    run(0)
    assert drawn == []
    (output / "images/t2i-2.png").unlink()
    (output / "images/t2i-1.png").write_bytes(b"another")
    run(0)
    run(1)
    assert sorted(drawn) == ["t2i-1", "t2i-2"]
    assert {path: path.read_bytes() for path in first} == first
    drawn.clear()
    generations = output / "generations.jsonl"
    generations.write_text(generations.read_text().replace("make the circle red.", "make the circle blue."))
    run(0)
    assert drawn == ["edit-1"], "a row that was changed is none"
    run(1, weights={**weights, "sha256": "other"})
    assert drawn == ["edit-1", "t2i-1"], "nor is one of other weights"


def test_changed_weights_are_refused_before_they_are_loaded(base: Path, tmp_path: Path) -> None:
    converted = tmp_path / "checkpoint-3/transformer"
    build_pipeline(seed=5).transformer.save_pretrained(converted)
    facts = {path.name: {"sha256": sha256_of(path)} for path in converted.iterdir()}
    (converted / "conversion.json").write_text(json.dumps({"files": facts}))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"key": "k", "task_type": "t2i", "instruction": "x"}))
    settings = protocol().model_copy(update={"prompts": str(tmp_path / "prompts.jsonl")})
    weights = EvaluatedWeights(base, converted, None)
    part = generate_part(settings, weights, tmp_path / "run", part=0, threads=1, name="x")
    assert read_rows(part)[0]["weights"] == describe_weights(weights)
    file = next(converted.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ValueError, match=rf"{file.name}: is not what was written .*snakemake"):
        generate_part(settings, weights, tmp_path / "run", part=0, threads=1, name="x")


def test_heldout_loss_is_the_training_loss_at_fixed_times(pipeline: OmniGen2Pipeline, prompts: list[Prompt]) -> None:
    with_target = prompts[:2]
    single = heldout_losses(Conditions(pipeline, protocol(batch_size=1)), with_target)
    assert heldout_losses(Conditions(pipeline, protocol(batch_size=5)), with_target) == [
        pytest.approx(row, rel=1e-4) for row in single
    ]
    assert [len(row) for row in single] == [3, 3]
    transformer = OmniGen2Transformer2DModel(**CONFIG)  # untrained, it predicts exactly zero
    blank = OmniGen2Pipeline(transformer, pipeline.vae, pipeline.scheduler, pipeline.mllm, pipeline.processor)
    latent = Conditions(pipeline, protocol()).latent(prompts[1].target)  # type: ignore[arg-type]
    noises = [torch.Generator().manual_seed(prompt_seed(0, f"t2i-1/loss/{i}")) for i in range(3)]
    wanted = [float((latent - torch.randn(latent.shape, generator=noise)).square().mean()) for noise in noises]
    assert heldout_losses(Conditions(blank, protocol()), prompts[1:2])[0] == pytest.approx(wanted, rel=1e-5)
    assert loss_times(protocol()) == pytest.approx([1 / 6, 0.5, 5 / 6])


def test_other_weights_are_loaded_and_described(base: Path, tmp_path: Path) -> None:
    other = build_pipeline(seed=5).transformer
    other.save_pretrained(tmp_path / "transformer")
    loaded = load_pipeline(base, tmp_path / "transformer", dtype="fp32", scheduler="dpmsolver++", device="cpu")
    assert torch.equal(loaded.transformer.x_embedder.weight, other.x_embedder.weight)
    assert type(loaded.scheduler).__name__ == "OmniGen2DPMSolverScheduler"
    plain, changed = described(base), described(base, tmp_path / "transformer")
    assert plain["sha256"] != changed["sha256"]
    assert not changed["transformer"].startswith("/")
    with pytest.raises(ValueError, match="dtype: 'fp8' is not allowed"):
        load_pipeline(base, dtype="fp8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        described(base, tmp_path / "empty")
    assert plain["pipeline_sha256"] is None, "the base has no manifest"


def test_weights_are_known_by_the_manifests_beside_them(tmp_path: Path) -> None:
    """Of a base model that the workflow has made, and of a conversion: their files need not be read."""
    base, converted, lora = tmp_path / "base", tmp_path / "c/transformer", tmp_path / "c/transformer_lora"
    for folder in (base, converted, lora):
        folder.mkdir(parents=True)
    hashes = {"vae/a": "1", "transformer/a": "2"}
    (base / "manifest.json").write_text(json.dumps(hashes))
    for folder in (converted, lora):
        (folder / "conversion.json").write_text(json.dumps({"files": {}, "source": folder.name}))
    start, full = EvaluatedWeights(base, None, None), EvaluatedWeights(base, converted, None)
    adapted, both = EvaluatedWeights(base, None, lora), EvaluatedWeights(base, converted, lora)
    assert [w.folders[:2] for w in (start, both)] == [[base / "transformer", base / "vae"], [converted, lora]]
    first = {weights: describe_weights(weights) for weights in (start, full, adapted, both)}
    assert len({found["sha256"] for found in first.values()}) == 4
    half = describe_weights(replace(both, lora_scale=0.5))
    assert half == {**first[both], "lora_scale": 0.5}, "whose images are others"
    assert {found["pipeline_sha256"] for found in first.values()} == {sha256_of(base / "manifest.json")}
    (base / "manifest.json").write_text(json.dumps({**hashes, "vae/a": "3"}))
    again = {weights: describe_weights(weights) for weights in first}
    assert all(again[weights]["sha256"] == first[weights]["sha256"] for weights in first)
    assert all(again[weights]["pipeline_sha256"] != first[weights]["pipeline_sha256"] for weights in first)
    (base / "manifest.json").write_text(json.dumps({**hashes, "transformer/a": "3"}))
    other = {weights for weights in first if describe_weights(weights)["sha256"] != first[weights]["sha256"]}
    assert other == {start, adapted}


def test_scores_sum_up_what_was_generated(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    weights = described(base)
    part = generate(protocol(), prompts, pipeline, output, weights=weights)
    scores = score(protocol(), prompts, [part], output, name="mine", step=BASE, weights=weights)
    text = (output / "scores.json").read_bytes()
    assert json.loads(text) == scores == read_scores(output)
    assert list(read_generations(output, scores)) == ["edit-1", "t2i-1", "t2i-2"]
    assert scores["weights"] == weights
    assert scores["prompts"] == 3
    assert set(scores["means"]) >= {"psnr", "ssim", "loss"}
    assert scores["means"]["psnr"] == pytest.approx(
        np.mean([row["psnr"] for row in scores["per_prompt"][:2]]), abs=1e-5
    )
    assert scores["per_prompt"][2] == {"key": "t2i-2", "task_type": "t2i", "category": None}
    assert scores["missing"] == 0
    assert [time for time, _ in scores["loss_by_time"]] == loss_times(protocol())
    assert len(read_rows(output / "generations.jsonl")) == 3
    score(protocol(), prompts, [part], output, name="mine", step=BASE, weights=weights)
    assert (output / "scores.json").read_bytes() == text


def test_scores_refuse_what_is_incomplete_or_of_another_protocol(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path
) -> None:
    output, weights = tmp_path / "run", described(base)
    part = generate(protocol(), prompts[:2], pipeline, output, weights=weights)

    def scored(prompts: list[Prompt], parts: list[Path], weights: dict[str, Any] = weights) -> dict[str, Any]:
        return score(protocol(), prompts, parts, output, name="mine", step=BASE, weights=weights)

    again = rf"Draw the images again: snakemake --cores 2 --force {part}"
    with pytest.raises(ValueError, match=rf"made under another protocol .*{again}"):
        scored(prompts, [part])
    with pytest.raises(ValueError, match="2 of 2 prompts have no image"):
        scored(prompts[:2], [])
    with pytest.raises(
        ValueError, match=rf"0\.jsonl:1: made with other weights than those that are there now\. {again}"
    ):
        scored(prompts[:2], [part], {**weights, "sha256": "other"})
    text = part.read_text()
    part.write_text(text.replace("a red circle.", "a red square."))
    with pytest.raises(ValueError, match=rf"0\.jsonl:2: was changed after it was written\. {again}"):
        scored(prompts[:2], [part])
    part.write_text(text)
    (output / "images/t2i-1.png").write_bytes((output / "images/edit-1.png").read_bytes())
    with pytest.raises(ValueError, match=rf"t2i-1\.png: .*its SHA-256 differs.*Draw it again: .*--force {part}"):
        scored(prompts[:2], [part])
    (output / "images/t2i-1.png").unlink()
    with pytest.raises(ValueError, match=r"t2i-1\.png: is missing"):
        scored(prompts[:2], [part])
    assert not (output / "scores.json").exists()


def test_image_measures_agree_with_their_definition() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
    other = np.clip(one.astype(int) + rng.integers(-9, 9, one.shape), 0, 255).astype(np.uint8)
    prompt = Prompt("p", "t2i", "a red circle")
    names = ["psnr", "ssim", "loss"]
    measured = measure(Case(prompt, Image.fromarray(one), Image.fromarray(other)), names)
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    assert measured["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-5)
    assert 0.9 < measured["ssim"] < 1
    same = Case(prompt, Image.fromarray(one), Image.fromarray(one), losses=(0.25, 0.5))
    assert measure(same, names) == {"psnr": HIGHEST_PSNR, "ssim": 1.0, "loss": 0.375}
    assert measure(Case(prompt, Image.fromarray(one)), names) == {}, "no figure where there is nothing to measure"


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=r"x\.png: cannot be read as an image"):
        open_image(tmp_path / "x.png")


def test_which_weights_a_converted_checkpoint_means() -> None:
    base, start, checkpoint = Path("base"), Path("experiments/a/checkpoint-3/transformer_ema"), Path("b/checkpoint-9")
    assert evaluated_weights(base, base / "transformer", None) == EvaluatedWeights(base, None, None)
    assert evaluated_weights(base, start, None) == EvaluatedWeights(base, start, None)
    for suffix in ("", "_ema"):
        full, lora = checkpoint / f"transformer{suffix}", checkpoint / f"transformer_lora{suffix}"
        assert evaluated_weights(base, start, full) == EvaluatedWeights(base, full, None)
        assert evaluated_weights(base, start, lora) == EvaluatedWeights(base, start, lora)
        assert evaluated_weights(base, start, lora, 0.5) == EvaluatedWeights(base, start, lora, 0.5)


@pytest.mark.parametrize("name", ["noext", "a.psd", "a.pdf", "folder/"])
def test_an_output_that_is_no_image_fails_before_anything_is_loaded(tmp_path: Path, name: str) -> None:
    arguments = ["generate", "--model_path", str(tmp_path / "nowhere"), "--instruction", "x"]
    done = CliRunner().invoke(app, [*arguments, "--output_image_path", str(tmp_path / name)])
    assert isinstance(done.exception, ValueError)
    assert str(done.exception).startswith(
        f"--output_image_path: {(tmp_path / name)} is no name of an image; end it with"
    )
    assert not list(tmp_path.iterdir())


def drawn(base: Path, tmp_path: Path, *options: object) -> Path:
    """What `omnitune generate` writes for tiny images."""
    size = ["--height", "32", "--width", "48", "--num_inference_step", "2", "--dtype", "fp32", "--negative_prompt", ""]
    arguments = ["generate", "--model_path", base, *size, "--output_image_path", tmp_path / "out" / "x.png", *options]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None:
        raise done.exception
    return tmp_path / "out"


def test_several_images_lie_side_by_side_and_inputs_may_be_a_folder(base: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    for name, size in (("b.png", (64, 32)), ("a.png", (32, 32)), (".hidden", (16, 16))):
        Image.new("RGB", size, "red").save(tmp_path / "inputs" / name, format="PNG")
    options = ["--input_image_path", tmp_path / "inputs", "--max_input_image_pixels", "512"]
    folder = drawn(base, tmp_path, *options, "--num_images_per_prompt", "2")
    images = [np.asarray(Image.open(folder / f"x{end}.png")) for end in ("_0", "_1", "")]
    assert images[0].shape == (32, 48, 3) and np.array_equal(np.hstack(images[:2]), images[2])
    for number in range(4):
        Image.new("RGB", (32, 32)).save(tmp_path / "inputs" / f"{number}.png")
    with pytest.raises(ValueError, match="--input_image_path: 6 images; the model takes at most 5"):
        drawn(base, tmp_path, *options)


def test_adapters_have_strengths(base: Path, tmp_path: Path) -> None:
    model = build_pipeline().transformer
    model.add_adapter(lora_config(2))
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_lora(tmp_path / f"lora{seed}", {name: torch.randn(t.shape) for name, t in lora_state_dict(model).items()})
    loras = [option for seed in (1, 2) for option in ("--transformer_lora_path", tmp_path / f"lora{seed}")]

    def pixels(*options: object) -> np.ndarray:
        return np.asarray(Image.open(drawn(base, tmp_path, *options) / "x.png"))

    def scales(*values: float) -> list[object]:
        return [option for value in values for option in ("--transformer_lora_scale", value)]

    assert np.array_equal(pixels(*loras, *scales(0, 0)), pixels())
    assert np.array_equal(pixels(*loras, *scales(0, 1)), pixels(*loras[2:]))
    assert not np.array_equal(pixels(*loras[2:], *scales(0.5)), pixels(*loras[2:]))
    with pytest.raises(ValueError, match="--transformer_lora_scale: 1 strengths for 2 adapters"):
        pixels(*loras, *scales(0.5))


def test_a_list_of_instructions_goes_on_where_it_was_killed(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "list.txt").write_text("a red circle\n\na blue square\n", encoding="utf-8")
    options = [
        "--prompts",
        tmp_path / "list.txt",
        "--output_image_path",
        tmp_path / "drawn",
        "--num_images_per_prompt",
        2,
    ]
    drawn(base, tmp_path, *options)
    names = ["00001-0", "00001-1", "00003-0", "00003-1"]
    images = [tmp_path / "drawn" / "images" / f"{name}.png" for name in names]
    assert sorted((tmp_path / "drawn/images").iterdir()) == images
    before = {image: image.stat().st_mtime_ns for image in images}
    images[2].unlink()
    (tmp_path / "drawn/parts/0.jsonl").rename(tmp_path / "drawn/parts/.0.unfinished.jsonl")  # as before the end
    drawn(base, tmp_path, *options, "--batch_size", "3")
    changed = [image for image in images if image.stat().st_mtime_ns != before[image]]
    assert changed == [images[2]]
    drawn(base, tmp_path, *options, "--enable_teacache", "--teacache_rel_l1_thresh", "1")
    assert all(image.stat().st_mtime_ns != before[image] for image in images), "a cache draws other images"


def test_instructions_of_a_jsonl(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    lines = [
        {"instruction": "a red circle", "task_type": "t2i", "score": 1},
        {"instruction": "make it blue", "input_images": ["a.png"], "key": "blue"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [(prompt.key, prompt.task_type, prompt.input_images) for prompt in read_instructions(path)]
    assert found == [("00001", "t2i", ()), ("blue", "edit", (tmp_path / "a.png",))]
    for line, message in (
        ({"instruction": " "}, r"list\.jsonl:1: 1 problem\n.*instruction: ' ' is not allowed"),
        ({"prompt": "a"}, r"list\.jsonl:1: 1 problem\n.*instruction: is required"),
        ({"instruction": "a", "input_images": ["b.png"]}, r"list\.jsonl:1: input_images: 'b\.png': does not exist"),
    ):
        path.write_text(json.dumps(line))
        with pytest.raises(ValueError, match=message):
            read_instructions(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "list.txt", "--instruction", "a"], "--prompts and --instruction: give one of them"),
        (["--prompts", "list.txt", "--output_image_path", "a.png"], r"--output_image_path: a\.png is no folder"),
        (["--prompts", "list.csv", "--output_image_path", "a"], r"list\.csv: is no file of instructions"),
        (["--enable_teacache", "--enable_group_offload"], "this cache looks into a block that is off the GPU"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path / "nowhere", tmp_path, *options)
