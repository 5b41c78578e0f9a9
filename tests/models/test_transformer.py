"""The transformer against the published one's figures, and what batching and training rely on."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from helpers.models import ragged_batch
from helpers.tiny import TRANSFORMER
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.transformer.rope import sample_position_ids

pytestmark = pytest.mark.unit

REFERENCE = Path(__file__).parents[1] / "data/reference"
CASES = ("t2i", "edit_one_ref", "mixed_batch")
TOLERANCE = 1e-5


def load_case(name: str) -> dict[str, Any]:
    """Inputs of forward and the published outputs of one case."""
    with safe_open(REFERENCE / "transformer_cases.safetensors", "pt") as file:
        case = {
            key.removeprefix(f"case.{name}."): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if key.startswith(f"case.{name}.")
        }
    batch = range(len(case["timestep"]))
    references = [[case[key] for key in sorted(case) if key.startswith(f"ref_image_hidden_states.{i}.")] for i in batch]
    return {
        "hidden_states": [case[f"hidden_states.{i}"] for i in batch],
        "timestep": case["timestep"],
        "encoder_hidden_states": case["text_hidden_states"],
        "encoder_attention_mask": case["text_attention_mask"],
        "ref_image_hidden_states": references,
        "sample": [case[f"sample.{i}"] for i in batch],
    }


@pytest.fixture(scope="module")
def reference_model() -> OmniGen2Transformer2DModel:
    with safe_open(REFERENCE / "transformer_cases.safetensors", "pt") as file:
        model = OmniGen2Transformer2DModel(**json.loads(file.metadata()["config"]))
        weights = {
            key.removeprefix("model."): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if key.startswith("model.")
        }
    model.load_state_dict(weights)
    return model.eval()


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel()
    with (REFERENCE / "transformer_keys.tsv").open() as file:
        published = {
            row["name"]: tuple(map(int, row["shape"].split("x"))) for row in csv.DictReader(file, delimiter="\t")
        }
    assert len(published) == 582
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == published


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_published_outputs(reference_model: OmniGen2Transformer2DModel, name: str) -> None:
    case = load_case(name)
    expected = case.pop("sample")
    with torch.no_grad():
        output = reference_model(**case).sample
    assert difference(output, expected) < TOLERANCE


def test_tensor_in_tensor_out(reference_model: OmniGen2Transformer2DModel) -> None:
    case = load_case("t2i")
    expected = case.pop("sample")
    case["hidden_states"] = torch.stack(case["hidden_states"])
    case["ref_image_hidden_states"] = None
    with torch.no_grad():
        (output,) = reference_model(**case, return_dict=False)
    assert isinstance(output, torch.Tensor) and output.shape == (1, 4, 8, 8)
    assert difference(list(output), expected) < TOLERANCE


def test_each_sample_is_as_alone(reference_model: OmniGen2Transformer2DModel) -> None:
    batch = ragged_batch()
    with torch.no_grad():
        together = reference_model(**batch).sample
        for i, output in enumerate(together):
            alone = {key: value[i : i + 1] for key, value in batch.items()}
            assert difference([output], reference_model(**alone).sample) < TOLERANCE, f"sample {i}"


def test_padding_and_neighbours_have_no_influence(reference_model: OmniGen2Transformer2DModel) -> None:
    batch = ragged_batch()
    changed = ragged_batch()
    changed["encoder_hidden_states"] = batch["encoder_hidden_states"].masked_fill(
        ~batch["encoder_attention_mask"][..., None], float("nan")
    )
    changed["hidden_states"] = [batch["hidden_states"][0], *(latent * 3 for latent in batch["hidden_states"][1:])]
    with torch.no_grad():
        before, after = reference_model(**batch).sample, reference_model(**changed).sample
    assert torch.equal(before[0], after[0])
    assert all(output.isfinite().all() for output in after)


def test_positions() -> None:
    text, images = sample_position_ids(3, [(2, 4), (3, 1), (1, 2)])
    assert text.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert [int(ids[0, 0]) for ids in images] == [3, 7, 10]
    assert images[0].tolist() == [[3, row, column] for row in range(2) for column in range(4)]


@pytest.mark.slow
def test_every_parameter_learns_and_checkpointing_changes_nothing(reference_model: OmniGen2Transformer2DModel) -> None:
    batch = ragged_batch()

    def gradients() -> dict[str, torch.Tensor]:
        reference_model.zero_grad()
        sum(output.square().sum() for output in reference_model(**batch).sample).backward()
        return {name: parameter.grad.clone() for name, parameter in reference_model.named_parameters()}

    plain = gradients()
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    reference_model.enable_gradient_checkpointing()
    try:
        checkpointed = gradients()
    finally:
        reference_model.disable_gradient_checkpointing()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    reference_model.zero_grad()


@pytest.mark.slow
def test_gradient_of_shared_rows(reference_model: OmniGen2Transformer2DModel) -> None:
    """The modulation's own backward pass is the derivative: samples' gradients add up."""
    batch = ragged_batch()
    weight = reference_model.layers[0].norm1.linear.weight

    def gradient(inputs: dict[str, Any]) -> torch.Tensor:
        loss = sum(output.square().sum() for output in reference_model(**inputs).sample)
        return torch.autograd.grad(loss, weight)[0]

    alone = sum(gradient({key: value[i : i + 1] for key, value in batch.items()}) for i in range(5))
    assert torch.allclose(gradient(batch), alone, rtol=1e-4, atol=1e-4)


def test_new_model_predicts_zero() -> None:
    model = OmniGen2Transformer2DModel(**TRANSFORMER)
    assert all(not output.any() for output in model(**ragged_batch()).sample)
    assert model.x_embedder.weight.any() and model.image_index_embedding.std() > 0.01


def test_materialised_from_meta() -> None:
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel(**TRANSFORMER)
    model = model.to_empty(device="cpu")
    model.initialize_weights()
    assert all(not output.any() for output in model(**ragged_batch()).sample)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(reference_model: OmniGen2Transformer2DModel, autocast: bool, tmp_path: Path) -> None:
    batch = ragged_batch()
    with torch.no_grad():
        exact = reference_model(**batch).sample
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                output = reference_model(**batch).sample
        else:
            reference_model.save_pretrained(tmp_path)
            half = OmniGen2Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
            output = half(**batch).sample
    assert all(tensor.dtype == torch.float32 for tensor in output)
    for ours, theirs in zip(output, exact, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_saves_and_loads(reference_model: OmniGen2Transformer2DModel, tmp_path: Path) -> None:
    reference_model.save_pretrained(tmp_path / "one")
    reference_model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder in ("one", "sharded"):
        loaded = OmniGen2Transformer2DModel.from_pretrained(tmp_path / folder)
        assert loaded.config.axes_lens == reference_model.config.axes_lens
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in reference_model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 50}, "hidden_size = 50 must be num_attention_heads"),
        ({"num_attention_heads": 2, "num_kv_heads": 3}, "multiple of num_kv_heads = 3"),
        ({"axes_dim_rope": (7, 8, 9)}, "even"),
    ],
)
def test_config_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OmniGen2Transformer2DModel(**{**TRANSFORMER, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": [torch.zeros(4, 3, 8)]}, r"hidden_states\[0\].*multiples of patch_size = 2"),
        ({"hidden_states": [torch.zeros(3, 8, 8)]}, "in_channels = 4"),
        ({"hidden_states": [torch.zeros(4, 8, 8)] * 2}, "encoder_hidden_states has 1 samples, hidden_states has 2"),
        ({"ref_image_hidden_states": [[torch.zeros(4, 2, 2)] * 6]}, "has 6 images: the model takes at most 5"),
        ({"ref_image_hidden_states": [[torch.zeros(4, 2, 5)]]}, r"ref_image_hidden_states\[0\]\[0\]"),
        ({"ref_image_hidden_states": [[], []]}, "ref_image_hidden_states has 2 samples"),
        ({"encoder_hidden_states": torch.zeros(1, 4, 31)}, "text_feat_dim = 32"),
        ({"encoder_attention_mask": torch.tensor([[0, 1, 1, 1]])}, "before the padding"),
        ({"encoder_attention_mask": torch.zeros(1, 4)}, "at least one"),
        ({"encoder_attention_mask": torch.ones(1, 5)}, "encoder_attention_mask has shape"),
        ({"hidden_states": [torch.zeros(4, 2, 66)]}, r"axes_lens\[2\] is 32, but this batch needs 33 positions"),
        ({"ref_image_hidden_states": [[torch.zeros(4, 64, 2)] * 4]}, r"axes_lens\[0\] is 128.* needs 133 positions"),
    ],
)
def test_input_errors(change: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {
        "hidden_states": [torch.zeros(4, 8, 8)],
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.zeros(1, 4, 32),
        "encoder_attention_mask": torch.ones(1, 4),
    }
    with pytest.raises(ValueError, match=message):
        OmniGen2Transformer2DModel(**{**TRANSFORMER, "axes_lens": (128, 32, 32)})(**{**inputs, **change})
