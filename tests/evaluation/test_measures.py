"""Measures of edits and by models: on pictures whose shift is known, and with tiny models that are built here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm

from helpers.pictures import moved, scene
from omnitune.config import Benchmark
from omnitune.config.base import check_config
from omnitune.config.benchmarks.measure import MeasureEntry
from omnitune.errors import ConfigError
from omnitune.evaluation.measures import sets
from omnitune.evaluation.measures.encoders import load_image, load_models
from omnitune.evaluation.measures.measure import Case, measure
from omnitune.evaluation.measures.sets import fid, kid, measure_sets
from omnitune.evaluation.model_files import (
    NotThereError,
    check_labels,
    find_model,
    local_model_files,
    models_read,
)
from omnitune.evaluation.prompts import Prompt

pytestmark = pytest.mark.unit

EDITS = ["identity", "shift", "zoom"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # as CLIP is published


def edit(
    folder: Path, source: Image.Image, answer: Image.Image, target: Image.Image | None = None, **changes: Any
) -> Case:
    source.save(folder / "in.png")
    prompt = Prompt("p", **{"task_type": "edit", "instruction": "x", "input_images": (folder / "in.png",), **changes})
    return Case(prompt, answer, target)


def test_a_drifting_edit_shows_in_shift_and_zoom(tmp_path: Path) -> None:
    """Also of an input of another size, which was brought to the image's before it was edited."""
    source = scene((256, 192), seed=3)
    found = measure(edit(tmp_path, source, moved(source, 3, -4, 1)), EDITS)
    assert found == {"shift": pytest.approx(5, abs=0.5), "zoom": pytest.approx(0, abs=0.2)}
    found = measure(edit(tmp_path, source.resize((512, 384)), moved(source, 0, 0, 1.02)), EDITS)
    assert found == {"shift": pytest.approx(0, abs=0.5), "zoom": pytest.approx(2, abs=0.2)}
    for other in ({"task_type": "t2i", "input_images": ()}, {"task_type": "ic"}):
        assert measure(edit(tmp_path, source, source, **other), EDITS) == {}


def test_identity_is_measured_outside_of_the_edited_region(tmp_path: Path) -> None:
    source = scene((128, 128), seed=4)
    target, answer = source.copy(), source.copy()
    for image, colour in ((target, "red"), (answer, "blue")):
        ImageDraw.Draw(image).rectangle((40, 40, 80, 80), fill=colour)
    assert measure(edit(tmp_path, source, answer, target), ["identity"]) == {"identity": 100.0}
    noisy = np.asarray(answer, dtype=int) + 5
    found = measure(
        edit(tmp_path, source, Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), target), ["identity"]
    )
    assert found["identity"] == pytest.approx(20 * np.log10(255 / 5), abs=0.3)
    assert measure(edit(tmp_path, source, answer), ["identity"]) == {}, "no target says which region is edited"
    whole = Image.fromarray(255 - np.asarray(source))
    assert measure(edit(tmp_path, source, answer, whole), ["identity"]) == {}, "nothing is to stay"


# ------------------------------------------------------------------ models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip/, siglip/ and dino/ with random weights, of a few kilobytes each."""
    import transformers

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    text = {
        "vocab_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"max_position_embeddings": 8, "eos_token_id": 1, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    square = {"size": {"height": 32, "width": 32}}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    siglip = transformers.SiglipConfig(text_config=text, vision_config=vision)
    dino = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    for name, model, processor in (
        ("clip", transformers.CLIPModel(clip), transformers.CLIPImageProcessorPil(**sizes)),
        ("siglip", transformers.SiglipModel(siglip), transformers.SiglipImageProcessorPil(**square)),
        ("dino", transformers.Dinov2Model(dino), transformers.BitImageProcessorPil(**sizes)),
    ):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        if name != "dino":
            _tokenizer().save_pretrained(folder / name)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("[pad]", "[end]", "[unk]", "a", "red", "blue", "circle"))}
    plain = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[unk]", pad_token="[pad]", eos_token="[end]")


def with_models(models: Path, *names: str) -> Benchmark:
    return with_entries(*({"name": name, "model": str(models / name)} for name in names))


def with_entries(*entries: dict[str, Any]) -> Benchmark:
    return check_config({"prompts": "p.jsonl", "measures": ["psnr", *entries]}, Benchmark, "b.yml")


def test_images_are_prepared_as_the_models_were_published(models: Path) -> None:
    """A plain colour has, after resizing and cutting, the published mean and deviation taken off each channel."""
    encoder = load_image(models / "clip")
    pixels = encoder.processor([Image.new("RGB", (64, 48), (255, 0, 51))], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    wanted = [(value - mean) / std for value, mean, std in zip((1.0, 0.0, 0.2), MEAN, STD, strict=True)]
    assert pixels.amax((0, 2, 3)).tolist() == pytest.approx(wanted, abs=1e-4)
    assert pixels.amin((0, 2, 3)).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "auto_map", {"AutoModel": "own.Own"}),
        ("config.json", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("config.json", "_attn_implementation", "stranger/kernel"),
        ("tokenizer_config.json", "fast_tokenizer_files", ["other.json"]),
        ("preprocessor_config.json", "auto_map", {"AutoImageProcessor": "own.Own"}),
        ("adapter_config.json", "base_model_name_or_path", "stranger/model"),
    ],
)
def test_a_model_that_would_load_something_else_is_absent(
    models: Path, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    shutil.copytree(models / "clip", tmp_path / "clip")
    path = tmp_path / "clip" / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, key: value}))
    loaded, absent = load_models(with_models(tmp_path, "clip"))
    assert not loaded
    assert f"clip/{file}: " in absent["clip"]


def test_likeness_to_text_and_inputs(models: Path, tmp_path: Path) -> None:
    benchmark = with_models(models, "clip", "siglip", "dino")
    loaded, absent = load_models(benchmark)
    assert sorted(loaded) == ["clip", "dino", "siglip"] and not absent
    picture = scene((48, 40))
    picture.save(tmp_path / "in.png")
    names = [entry.name for entry in benchmark.measured]
    # By other means: the model's own forward gives the cosines of a text and an image, scaled.
    caption = Prompt("p", "t2i", "a red circle " + "blue " * 20)
    found = measure(Case(caption, picture, models=loaded), names)
    for name, scaled in (("clip", "logits_per_image"), ("siglip", "logits_per_image")):
        encoder = loaded[name]
        padding = {"padding": "max_length"} if name == "siglip" else {}
        tokens = encoder.tokenizer([caption.instruction], truncation=True, max_length=8, return_tensors="pt", **padding)
        with torch.no_grad():
            output = encoder.model(**tokens, **encoder.processor([picture], return_tensors="pt"))
            scale, bias = encoder.model.logit_scale.exp(), getattr(encoder.model, "logit_bias", 0)
        assert found[name] == pytest.approx(100 * float((output[scaled] - bias) / scale), abs=1e-3)
    assert set(found) == {"clip", "siglip"}
    inputs = (tmp_path / "in.png",)
    same = measure(Case(Prompt("p", "edit", "make it red", inputs), picture, models=loaded), names)
    assert same == {"dino": pytest.approx(100, abs=1e-3)}, "an edit's instruction describes no picture"
    other = measure(Case(Prompt("p", "ic", "a circle", inputs), scene((48, 40), seed=9), models=loaded), names)
    assert set(other) == {"clip", "siglip", "dino"} and other["dino"] < 99.9


def test_preference_is_the_models_own_score(models: Path) -> None:
    """Beside a clip of another model: its logit, as its forward gives it; none of edits."""
    picture, caption = scene((48, 40)), Prompt("p", "t2i", "a red circle")
    for name in ("clip", "siglip"):
        entry = {"name": "preference", "model": str(models / name)}
        loaded, _ = load_models(with_entries(entry, {"name": "clip", "model": str(models / "clip")}))
        encoder = loaded["preference"]
        with torch.no_grad():  # a scale and a bias of their own, as training leaves them
            encoder.model.logit_scale.fill_(3.0)
            padding = {"padding": "max_length", "max_length": 8} if name == "siglip" else {}
            tokens = encoder.tokenizer([caption.instruction], return_tensors="pt", **padding)
            output = encoder.model(**tokens, **encoder.processor([picture], return_tensors="pt"))
        found = measure(Case(caption, picture, models=loaded), ["clip", "preference"])
        assert found["preference"] == pytest.approx(float(output.logits_per_image), abs=1e-4)
        assert found["preference"] != pytest.approx(found["clip"], abs=0.1)
        assert measure(Case(Prompt("p", "edit", "make it red"), picture, models=loaded), ["preference"]) == {}


def classifier(folder: Path, **config: Any) -> Path:
    """A tiny BEiT for image classification, as cafe_aesthetic is one."""
    import transformers

    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = transformers.BeitConfig(image_size=32, patch_size=16, initializer_range=0.5, **sizes, **config)
    transformers.BeitForImageClassification(settings).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    transformers.BeitImageProcessorPil(size=square, do_center_crop=False).save_pretrained(folder)
    return folder


def outputs_of(folder: Path, picture: Image.Image) -> np.ndarray:
    """By other means: the picture prepared by hand, as the processor's file says."""
    import transformers

    said = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = np.asarray(picture.resize((32, 32), Image.Resampling(said["resample"])), dtype=np.float64) / 255
    pixels = (pixels - said["image_mean"]) / said["image_std"]
    model = transformers.BeitForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor(pixels.transpose(2, 0, 1)[None]).float()).logits[0].double().numpy()


LABELS = {"id2label": {0: "not_aesthetic", 1: "aesthetic", 2: "none"}}


def test_aesthetic_is_the_probability_of_a_label_or_the_output(tmp_path: Path) -> None:
    picture, prompt = scene((48, 40)), Prompt("p", "edit", "make it red")

    def score(folder: Path, **label: str) -> float:
        loaded, absent = load_models(with_entries({"name": "aesthetic", "model": str(folder), **label}))
        assert not absent
        return measure(Case(prompt, picture, models=loaded), ["aesthetic"])["aesthetic"]

    logits = outputs_of(folder := classifier(tmp_path / "labels", **LABELS), picture)
    shares = np.exp(logits) / np.exp(logits).sum()
    assert abs(shares[1] - 1 / 3) > 0.01, "no figure that any model would give"
    assert score(folder, label="aesthetic") == pytest.approx(shares[1], abs=1e-4)
    assert score(folder, label="none") == pytest.approx(shares[2], abs=1e-4)
    folder = classifier(tmp_path / "each", **LABELS, problem_type="multi_label_classification")
    wanted = 1 / (1 + np.exp(-outputs_of(folder, picture)[1]))
    assert score(folder, label="aesthetic") == pytest.approx(wanted, abs=1e-4)
    folder = classifier(tmp_path / "value", num_labels=1)
    assert score(folder) == pytest.approx(outputs_of(folder, picture)[0], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "label", "message"),
    [
        (LABELS, {"label": "beauty"}, "'beauty' is no label of {}; it has not_aesthetic, aesthetic, none"),
        (LABELS, {}, "is missing of {}; it has not_aesthetic, aesthetic, none"),
        ({}, {"label": "beauty"}, "'beauty' is no label of {}; it has LABEL_0, LABEL_1"),
        ({"num_labels": 1}, {"label": "beauty"}, "{} has one output, which needs no label; take 'beauty' out"),
    ],
)
def test_a_label_that_the_model_does_not_have_is_an_error_before_any_job(
    tmp_path: Path, config: dict[str, Any], label: dict[str, str], message: str
) -> None:
    """And where that cannot be known yet, as of a model on the hub, no figure."""
    folder = classifier(tmp_path / "m", **config)
    benchmark = with_entries({"name": "aesthetic", "model": str(folder), **label})
    message = f"measures.label: {message.format(folder)}"
    with pytest.raises(NotThereError) as error:
        check_labels(benchmark)
    assert str(error.value) == message
    assert load_models(benchmark) == ({}, {"aesthetic": message})


def test_a_model_without_the_head_that_is_asked_for_is_absent(models: Path, tmp_path: Path) -> None:
    """The library would make one up; also of a CLIP whose files lack a part."""
    benchmark = with_entries({"name": "aesthetic", "model": str(models / "dino"), "label": "LABEL_1"})
    loaded, absent = load_models(benchmark)
    assert not loaded
    lost = "its files lack 2 tensors of the model, such as classifier.bias, classifier.weight."
    assert absent["aesthetic"] == f"{models / 'dino'}: {lost}"
    shutil.copytree(models / "clip", tmp_path / "clip")
    weights = load_file(tmp_path / "clip/model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "clip/model.safetensors", {"format": "pt"})
    loaded, absent = load_models(with_models(tmp_path, "clip"))
    assert not loaded and "its files lack 1 tensors of the model, such as text_projection.weight." in absent["clip"]
    gone = with_entries({"name": "aesthetic", "model": str(tmp_path / "none"), "label": "x"})
    check_labels(gone)  # it is not there, which is no mistake
    assert "does not exist" in load_models(gone)[1]["aesthetic"]


def test_measures_of_one_model_load_it_once(models: Path) -> None:
    entries = ({"name": name, "model": str(models / "clip")} for name in ("clip", "preference"))
    loaded, _ = load_models(with_entries(*entries))
    assert loaded["clip"] is loaded["preference"]


def find_reason(name: str) -> str:
    with pytest.raises(NotThereError) as error:
        find_model(name)
    return str(error.value)


def test_a_model_that_is_not_there_is_named(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also one of another kind, or without its tokenizer; the others are measured."""
    entries = [
        {"name": "clip", "model": str(tmp_path / "nowhere")},
        {"name": "siglip", "model": str(models / "dino")},
        {"name": "dino", "model": str(models / "dino")},
    ]
    benchmark = check_config({"prompts": "p.jsonl", "measures": entries}, Benchmark, "b.yml")
    loaded, absent = load_models(benchmark)
    assert list(loaded) == ["dino"]
    assert absent["clip"].startswith(f"measures.model: '{tmp_path / 'nowhere'}' does not exist")
    assert "'models/none' (revision newest) could not be fetched" in find_reason("models/none")
    assert absent["siglip"] == f"{models / 'dino'} holds a Dinov2Model, which takes no texts"
    assert "not measured: clip" in caplog.text
    assert measure(Case(Prompt("p", "t2i", "x"), scene((32, 32)), models=loaded), ["clip", "siglip"]) == {}


def test_scores_depend_on_the_models_that_are_there(models: Path, tmp_path: Path) -> None:
    read = models_read(with_models(models, "dino"))
    assert read == {"dino": {"model": str(models / "dino"), "sha256": read["dino"]["sha256"]}}
    assert models_read(with_models(tmp_path, "dino"))["dino"]["absent"].endswith("does not exist. Check the path.")
    files = {path.name for path in local_model_files(with_models(models, "dino"))}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (["psrn"], r"measures\.0\.name: 'psrn' is not allowed: input should be 'psnr', 'ssim'"),
        (["check_passed"], r"measures\.0\.name: 'check_passed' is not allowed"),
        (["clip"], r"measures\.0: .*clip needs one; write \{name: clip, model: FOLDER\}"),
        ([{"name": "psnr", "model": "x"}], r"measures\.0.*: psnr takes none; write psnr"),
        ([{"name": "clip", "model": "x", "label": "y"}], r"measures\.0\.label: clip takes none; take it out"),
        (["aesthetic"], r"measures\.0: .*aesthetic needs one; write \{name: aesthetic, model: FOLDER\}"),
        ([{"name": "clip", "modle": "x"}], r"measures\.0\.modle: unknown key"),
        (["psnr", "psnr"], r"measures: psnr stands there twice; take one out"),
        ([3], r"measures\.0: 3 is not allowed"),
    ],
)
def test_wrong_measures_are_named(measures: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config({"prompts": "p.jsonl", "measures": measures}, Benchmark, "b.yml")


def test_sets_agree_with_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """FID by scipy's root of a matrix; KID by the kernel of every pair, one by one."""
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(120, 4)), rng.normal(0.3, 1.2, size=(150, 4))
    means, covariances = zip(*((one.mean(0), np.cov(one.T)) for one in (images, targets)), strict=True)
    root = sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert fid(torch.tensor(images), torch.tensor(targets)) == pytest.approx(wanted, rel=1e-6)
    assert fid(torch.tensor(images), torch.tensor(images)) == pytest.approx(0, abs=1e-4)
    kernel = [[[(a @ b / 4 + 1) ** 3 for b in right] for a in left] for left, right in pairs_of(images, targets)]
    same = [(sum(map(sum, k)) - sum(k[i][i] for i in range(len(k)))) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    wanted = 1000 * (sum(same) - 2 * np.mean(kernel[2]))
    monkeypatch.setattr(sets, "ROWS", 50)
    assert kid(torch.tensor(images), torch.tensor(targets)) == pytest.approx(wanted, rel=1e-6)


def pairs_of(one: Any, other: Any) -> list[tuple[Any, Any]]:
    return [(one, one), (other, other), (one, other)]


def test_sets_need_a_hundred_images(models: Path, tmp_path: Path) -> None:
    benchmark = with_models(models, "fid", "kid")
    loaded = {name: load_image(models / "dino") for name in ("fid", "kid")}
    entries = [MeasureEntry(name=name, model=str(models / "dino")) for name in ("fid", "kid")]
    for number in range(100):
        scene((40, 40), seed=number).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(100)]
    pairs = list(zip(paths, paths[1:] + paths[:1], strict=True))
    found, absent = measure_sets(entries, loaded, pairs)
    assert not absent and found["fid"]["n"] == 100
    assert abs(found["fid"]["value"]) < 1e-3, "the same set in another order"
    assert found["kid"]["value"] < 0, "as it is without bias, and these are nearer than two draws are"
    assert measure_sets(entries, loaded, pairs[1:])[1] == dict.fromkeys(
        ("fid", "kid"), "99 images with a target; a figure of a set needs 100"
    )
    with pytest.raises(ConfigError, match="primary: 'fid' is of all images together, and has no interval"):
        check_config({**benchmark.model_dump(exclude_none=True), "primary": "fid"}, Benchmark, "b.yml")
