"""A tiny pipeline generates, is killed, and goes on."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pipelines import CONFIG, build_pipeline, described, protocol, read_rows
from omnitune.evaluation.conditions import Conditions
from omnitune.evaluation.generate import generate, generate_part, load_pipeline
from omnitune.evaluation.loss import heldout_losses, loss_times
from omnitune.evaluation.prompts import Prompt, open_image, prompt_seed, read_prompts
from omnitune.evaluation.results import read_generations
from omnitune.evaluation.scoring import score
from omnitune.evaluation.weights import EvaluatedWeights, baseline_weights, describe_weights, evaluated_weights
from omnitune.io.files import is_whole, sha256_of
from omnitune.models import OmniGen2Pipeline, OmniGen2Transformer2DModel
from omnitune.paths import BASE

pytestmark = [pytest.mark.unit, pytest.mark.slow]


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
    parts[0].unlink()
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
    assert len(plain["pipeline_sha256"]) == 64, "also of a pipeline without a manifest"


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


def test_which_weights_a_converted_checkpoint_means() -> None:
    base, start, checkpoint = Path("base"), Path("experiments/a/checkpoint-3/transformer_ema"), Path("b/checkpoint-9")
    assert evaluated_weights(base, base / "transformer", None) == EvaluatedWeights(base, None, None)
    assert evaluated_weights(base, start, None) == EvaluatedWeights(base, start, None)
    for suffix in ("", "_ema"):
        full, lora = checkpoint / f"transformer{suffix}", checkpoint / f"transformer_lora{suffix}"
        assert evaluated_weights(base, start, full) == EvaluatedWeights(base, full, None)
        assert evaluated_weights(base, start, lora) == EvaluatedWeights(base, start, lora)
        assert evaluated_weights(base, start, lora, 0.5) == EvaluatedWeights(base, start, lora, 0.5)


def test_a_baseline_is_a_pipeline_or_a_transformer(base: Path, tmp_path: Path) -> None:
    assert baseline_weights(Path("b"), base) == EvaluatedWeights(base, None, None)
    assert baseline_weights(Path("b"), base / "transformer") == EvaluatedWeights(Path("b"), base / "transformer", None)
    copy = shutil.copytree(base, tmp_path / "copy")
    first = describe_weights(baseline_weights(Path("b"), copy))
    config = copy / "vae/config.json"
    config.write_text(config.read_text() + " ")
    then = describe_weights(baseline_weights(Path("b"), copy))
    assert then["sha256"] == first["sha256"] and then["pipeline_sha256"] != first["pipeline_sha256"]
