"""The loader: what each process gets at each step, from any step on, and errors that name the tar."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnitune.config import ConfigError
from omnitune.data.loader import Sample, ShardIndex, TrainingBatches, training_loader
from omnitune.data.plan import MixturePlan
from omnitune.data.shard import ImageLimits, shard_dataset
from omnitune.data.validate import validate_mixture

pytestmark = pytest.mark.unit

SOURCES = ["edit", "t2i"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in SOURCES:
        rows = []
        for k in range(10):
            Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(folder / f"{name}{k}.png")
            inputs = [f"{name}{(k + 1) % 10}.png"] if name == "edit" else []
            row = {"task_type": name, "instruction": f"The image shows {k}", "input_images": inputs}
            rows.append(json.dumps({**row, "output_image": f"{name}{k}.png"}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    (folder / "mix.yml").write_text("".join(["data:\n", *(f"- path: {folder / name}.jsonl\n" for name in SOURCES)]))
    validate_mixture(folder / "mix.yml", folder / "validation", progress=False, samples_per_shard=4)
    shard_dataset(folder / "validation", folder / "shards", ImageLimits(4096, 1024, 64), progress=False)
    return folder / "shards"


def batches(shards: Path, **changes) -> TrainingBatches:
    index = ShardIndex.load(shards / "index.parquet")
    options = {"seed": 3, "global_batch_size": 8, "batch_size": 8, "prompt_dropout_prob": 0.5}
    options |= {"ref_img_dropout_prob": 0.5, **changes}
    return TrainingBatches(index, MixturePlan(index.sizes(SOURCES), [0.5, 0.5], 3), SOURCES, **options)


def identity(sample: Sample) -> tuple:
    images = [image.sum().item() for image in (*sample.input_images, sample.output_image)]
    return sample.step, sample.slot, sample.key, sample.instruction, sample.drop_prompt, images


def run(loader) -> list[tuple]:
    return [identity(sample) for microbatch in loader for sample in microbatch]


def test_samples_are_what_the_images_hold(shards: Path) -> None:
    data = batches(shards, prompt_dropout_prob=0.0)
    samples = data[0, 0] + data[1, 0]
    assert {sample.source for sample in samples} == set(SOURCES)
    for sample in samples:
        number = int(sample.key[-8:]) - 1
        original = np.asarray(Image.open(shards.parent / f"{sample.source}{number}.png"), np.float32)
        expected = torch.from_numpy(original).permute(2, 0, 1) / 127.5 - 1
        assert sample.output_image.dtype == torch.float32
        torch.testing.assert_close(sample.output_image, expected)
        shapes = [tuple(image.shape) for image in sample.input_images]
        assert shapes == ([(3, 16, 32)] if sample.source == "edit" else [])
        assert sample.instruction in {f"The image shows {number}", str(number)}
        assert sample.source == "t2i" or sample.instruction != str(number)
        assert not sample.drop_prompt


@pytest.mark.parametrize(("world_size", "accumulation", "batch_size"), [(1, 1, 8), (2, 1, 4), (2, 2, 2), (1, 8, 1)])
def test_processes_share_a_step_however_it_is_cut(
    shards: Path, world_size: int, accumulation: int, batch_size: int
) -> None:
    whole = run(training_loader(batches(shards), 0, 3))
    parts = []
    for rank in range(world_size):
        cut = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        data = batches(shards, rank=rank, world_size=world_size, **cut)
        loader = training_loader(data, 0, 3)
        assert len(loader) == 3 * accumulation
        own = run(loader)
        assert {slot for _, slot, *_ in own} == set(range(rank * 8 // world_size, (rank + 1) * 8 // world_size))
        parts += own
    assert sorted(parts) == whole


def test_a_resumed_loader_goes_on_where_the_first_was(shards: Path) -> None:
    whole = run(training_loader(batches(shards), 0, 6))
    assert run(training_loader(batches(shards), 4, 6)) == whole[4 * 8 :]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_change_nothing(shards: Path, context: str) -> None:
    data = batches(shards, batch_size=4, gradient_accumulation_steps=2)
    alone = run(training_loader(data, 0, 3))  # the files are open before the workers start
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loader = training_loader(data, 0, 3, num_workers=2)
    loader.multiprocessing_context = context
    assert run(loader) == alone
    assert torch.equal(torch.get_rng_state(), state)


def test_references_are_dropped_only_with_their_prompt(shards: Path) -> None:
    data = batches(shards)
    samples = [sample for step in range(12) for sample in data[step, 0] if sample.source == "edit"]
    kinds = {(sample.drop_prompt, bool(sample.input_images)) for sample in samples}
    assert kinds == {(False, True), (True, True), (True, False)}
    assert all((sample.instruction == "") == sample.drop_prompt for sample in samples)


def test_an_index_survives_pickling_and_more_tars_than_may_be_open(shards: Path, monkeypatch) -> None:
    monkeypatch.setattr("omnitune.data.loader.OPEN_TARS", 1)
    data = batches(shards)
    assert [identity(sample) for sample in pickle.loads(pickle.dumps(data))[0, 0]] == [identity(s) for s in data[0, 0]]
    assert len(data.index._files) == 1
    assert (len(data.index), data.index.sources) == (20, SOURCES)


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_changed_tars_are_named(copied: Path) -> None:
    index = ShardIndex.load(copied / "index.parquet")
    index.check_tars()
    row = index.row("edit", 0)
    tar = copied / row.tar
    whole = tar.read_bytes()

    tar.write_bytes(whole[: row.image_offsets[0] + 5])
    with pytest.raises(
        ValueError, match=r"edit-00000\.tar: has .* snakemake --cores 2 --forcerun shard_dataset index_dataset"
    ):
        index.check_tars()
    with pytest.raises(
        ValueError, match=rf"edit-00000\.tar: ends early: sample {row.key}.*byte {row.image_offsets[0]}"
    ):
        index.read_images(row)

    changed = bytearray(whole)
    changed[row.image_offsets[0] + 30] ^= 1
    tar.write_bytes(bytes(changed))
    index.check_tars()
    with pytest.raises(ValueError, match=rf"edit-00000\.tar: sample {row.key} .* is not what was indexed"):
        index.read_images(row)

    index.close()
    tar.unlink()
    with pytest.raises(ValueError, match=r"edit-00000\.tar: is missing"):
        index.check_tars()
    with pytest.raises(ValueError, match=r"edit-00000\.tar: cannot be opened"):
        index.read_images(row)


def test_bytes_that_do_not_decode_are_named(shards: Path) -> None:
    data = batches(shards)
    row = data.index.row("t2i", 0)
    with pytest.raises(
        ValueError, match=rf"image 0 of sample {row.key} at byte {row.image_offsets[0]} does not decode"
    ):
        data._decode(row, 0, b"no image")


def test_mistakes_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 3 x gradient_accumulation_steps 1 x 2 processes = 6"):
        batches(shards, batch_size=3, world_size=2)
    with pytest.raises(ConfigError, match=r"no samples of 'other' \(it has edit, t2i\)"):
        ShardIndex.load(shards / "index.parquet").sizes(["edit", "other"])
    with pytest.raises(ConfigError, match="cannot be read as an index"):
        ShardIndex.load(tmp_path / "index.parquet")
    with pytest.raises(IndexError, match="microbatch 1"):
        batches(shards)[0, 1]
