"""The loader: what each process gets at each step, from any step on, and errors that name the tar."""

import json
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from omnitune.errors import ConfigError
from omnitune.images.prepare import ImageLimits
from omnitune.loading.loader import Sample, ShardIndex, TrainingBatches, training_loader
from omnitune.loading.order import MixtureOrder
from omnitune.sharding.shard import shard_dataset
from omnitune.validation.dataset import validate_mixture

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
    return TrainingBatches(index, MixtureOrder(index.sizes(SOURCES), [0.5, 0.5], 3), SOURCES, **options)


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


@pytest.mark.parametrize(("world_size", "accumulation", "batch_size"), [(1, 1, 8), (2, 1, 4), (2, 2, 2), (8, 1, 1)])
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
        own = [[identity(sample) for sample in microbatch] for microbatch in loader]
        assert [len(microbatch) for microbatch in own] == [batch_size] * 3 * accumulation
        parts += [sample for microbatch in own for sample in microbatch]
    assert sorted(parts) == whole


def test_processes_get_like_numbers_of_tokens(shards: Path) -> None:
    cut = {"batch_size": 4, "world_size": 2}
    data = [batches(shards, rank=rank, **cut) for rank in range(2)]
    waited = computed = 0
    for step in range(10):
        rows = [[row for _, _, row in part.slots(step, 0)] for part in data]
        sums = [sum(row.output_tokens + row.input_tokens + (row.text_tokens or 0) for row in part) for part in rows]
        assert min(sums) > 0
        waited, computed = waited + abs(sums[0] - sums[1]), computed + sum(sums)
    assert data[0].waste(0, 10) == pytest.approx(waited / (waited + computed))
    assert data[0].waste(0, 10) < 0.05


@pytest.mark.parametrize("first", range(6))
def test_a_resumed_loader_goes_on_where_the_first_was(shards: Path, first: int) -> None:
    cut = {"batch_size": 2, "gradient_accumulation_steps": 2, "world_size": 2, "rank": 1}
    whole = run(training_loader(batches(shards, **cut), 0, 6))
    assert run(training_loader(batches(shards, **cut), first, 6)) == whole[first * 4 :]


@pytest.mark.slow
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


def test_a_loader_survives_pickling(shards: Path) -> None:
    data = batches(shards)
    assert [identity(sample) for sample in pickle.loads(pickle.dumps(data))[0, 0]] == [identity(s) for s in data[0, 0]]
    assert (len(data.index), data.index.sources) == (20, SOURCES)


@pytest.mark.parametrize("rows_per_batch", [1, 7, 1000])
def test_a_mapped_index_holds_what_the_parquet_file_holds(shards: Path, tmp_path: Path, rows_per_batch: int) -> None:
    table = pq.read_table(shards / "index.parquet")
    pq.write_table(table, tmp_path / "index.parquet")
    read = ShardIndex.load(tmp_path / "index.parquet")
    with pa.OSFile(str(tmp_path / "index.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    mapped = ShardIndex.load(tmp_path / "index.parquet")
    assert mapped.sizes(SOURCES) == read.sizes(SOURCES) == [10, 10]
    for source in SOURCES:
        assert [mapped.row(source, k) for k in range(10)] == [read.row(source, k) for k in range(10)]
        assert [mapped.tokens(source, k) for k in range(10)] == [read.tokens(source, k) for k in range(10)]
        keys = [key for part in mapped.parts(source) for key in part.column("key").to_pylist()]
        assert keys == [read.row(source, k).key for k in range(10)]
    with pytest.raises(IndexError):
        mapped.row("t2i", 10)


def test_indexes_that_do_not_fit_are_named(shards: Path, tmp_path: Path) -> None:
    table = pq.read_table(shards / "index.parquet")
    pq.write_table(table, tmp_path / "index.parquet")
    table = table.replace_schema_metadata({"shards": "others"})
    with pa.OSFile(str(tmp_path / "index.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ConfigError, match=r"index\.arrow beside it was made of other shards: one of the two is older"):
        ShardIndex.load(tmp_path / "index.parquet")
    pq.write_table(table.drop_columns(["sha256"]), tmp_path / "old.parquet")
    with pytest.raises(ConfigError, match=r"old\.parquet: cannot be read as an index \(it has no column sha256\)"):
        ShardIndex.load(tmp_path / "old.parquet")
    mixed = pa.concat_tables([table.slice(15), table.slice(0, 15)])
    pq.write_table(mixed, tmp_path / "mixed.parquet")
    with pytest.raises(ConfigError, match="rows of 't2i' do not follow one another"):
        ShardIndex.load(tmp_path / "mixed.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_shards_at_a_url_give_the_same_samples(shards: Path, s3: str, tmp_path: Path, context: str) -> None:
    place, names = f"{s3}/loader-{context}", [path.name for path in shards.glob("*.tar")]
    for name in ("index.parquet", *names):
        with fsspec.open(f"{place}/{name}", "wb") as file:
            file.write((shards / name).read_bytes())
    index = ShardIndex.load(f"{place}/index.parquet", tmp_path, 100_000_000)
    index.check_tars()
    options = {"seed": 3, "global_batch_size": 8, "batch_size": 8}
    remote = TrainingBatches(index, MixtureOrder([10, 10], [0.5, 0.5], 3), SOURCES, **options)
    local = run(training_loader(batches(shards, prompt_dropout_prob=0, ref_img_dropout_prob=0), 0, 3))
    loader = training_loader(remote, 0, 3, num_workers=2)
    loader.multiprocessing_context = context
    assert run(loader) == local
    for name in names:  # whatever was read once lies in the cache, whichever process has read it
        fsspec.open(f"{place}/{name}").fs.rm(f"{place}/{name}")
    assert run(training_loader(remote, 0, 3)) == local


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
    assert [len(data) for data in index.read_images(row)] == row.image_sizes

    with tar.open("rb+") as file:  # in place: the index holds it open
        file.truncate(row.image_offsets[0] + 5)
    with pytest.raises(ValueError, match=r"edit-00000\.tar: has .* --forcerun shard_dataset index_dataset"):
        index.check_tars()
    with pytest.raises(
        ValueError, match=rf"edit-00000\.tar: ends early: sample {row.key} at byte {row.json_offset} needs"
    ):
        index.read_images(row)

    for place in (row.json_offset + 3, row.image_offsets[0] + 30, row.image_offsets[-1] + 30):
        changed = bytearray(whole)
        changed[place] ^= 1
        tar.write_bytes(bytes(changed))
        index.check_tars()
        with pytest.raises(
            ValueError, match=rf"edit-00000\.tar: sample {row.key} at byte {row.json_offset} is not what was indexed"
        ):
            index.read_images(row)

    index.close()
    tar.unlink()
    with pytest.raises(ValueError, match=r"edit-00000\.tar: is missing"):
        index.check_tars()
    with pytest.raises(ValueError, match=rf"edit-00000\.tar: sample {row.key} at byte .* cannot be read"):
        index.read_images(row)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cut", [True, False])
def test_a_tar_that_changes_under_a_training_stops_it_by_name(copied: Path, num_workers: int, cut: bool) -> None:
    loader = iter(training_loader(batches(copied), 0, 200, num_workers))
    next(loader)
    for tar in copied.glob("*.tar"):
        size = tar.stat().st_size
        with tar.open("rb+") as file:
            if cut:
                file.truncate(1000)
            else:
                file.write(bytes(size))
    expected = "ends early" if cut else "is not what was indexed"
    with pytest.raises(ValueError, match=rf"^{copied}/(edit|t2i)-0000\d\.tar: .*sample .* at byte \d+ .*") as error:
        list(loader)
    assert expected in str(error.value)
    assert "Traceback" not in str(error.value)


def test_bytes_that_do_not_decode_are_named(shards: Path) -> None:
    data = batches(shards)
    row = data.index.row("t2i", 0)
    with pytest.raises(
        ValueError, match=rf"image 0 of sample {row.key} at byte {row.image_offsets[0]} does not decode"
    ):
        data.index._decode(row, 0, b"no image")


def test_mistakes_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 3 x gradient_accumulation_steps 1 x 2 processes = 6"):
        batches(shards, batch_size=3, world_size=2)
    with pytest.raises(ConfigError, match=r"no samples of 'other' \(it has edit, t2i\)"):
        ShardIndex.load(shards / "index.parquet").sizes(["edit", "other"])
    with pytest.raises(ConfigError, match="cannot be read as an index"):
        ShardIndex.load(tmp_path / "index.parquet")
    with pytest.raises(IndexError, match="microbatch 1"):
        batches(shards)[0, 1]
