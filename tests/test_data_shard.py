"""Images, shards and the index: what is kept, what is changed, and that bytes depend on manifest and limits alone."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image, ImageCms

from omnitune.config import ConfigError
from omnitune.data.images import prepare_image, target_size
from omnitune.data.shard import ImageLimits, read_tar, shard_dataset, write_index, write_shard
from omnitune.data.validate import validate_mixture

pytestmark = pytest.mark.unit

FIGURES = Path(__file__).parent / "data" / "reference" / "figures.json"
LIMITS = ImageLimits(64 * 64, [48 * 48, 32 * 32], 80)
ORIENTATION = 0x0112


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG changes it little."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([x * 255, y * 255, np.full_like(x, seed * 20 % 255)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_sizes_are_the_published_ones() -> None:
    for width, height, pixels, side, new_width, new_height in json.loads(FIGURES.read_text())["resize"]:
        assert target_size(width, height, pixels, side) == (new_width, new_height)


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (encoded(picture(64, 48), "JPEG", quality=70), "jpg"),
        (encoded(picture(64, 48), "PNG"), "png"),
        (encoded(picture(64, 48), "WEBP"), "webp"),
        (encoded(picture(64, 48, "L"), "JPEG"), "jpg"),
        (encoded(picture(64, 48, "P"), "PNG"), "png"),
        (
            encoded(
                picture(64, 48), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
            ),
            "png",
        ),
    ],
)
def test_images_that_need_no_change_keep_their_bytes(data: bytes, extension: str) -> None:
    assert prepare_image(data, 64 * 64, 64) == (data, extension, 64, 48, True)


def foreign_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(64, 48), "BMP"),
        encoded(picture(64, 48), "GIF"),
        encoded(picture(64, 48, "RGBA"), "PNG"),
        encoded(picture(64, 48, "CMYK"), "JPEG"),
        encoded(picture(64, 50), "PNG"),
        encoded(picture(80, 60), "JPEG"),
        encoded(picture(64, 48), "PNG", icc_profile=foreign_profile()),
        encoded(picture(64, 48), "PNG", icc_profile=b"damaged"),
    ],
)
def test_other_images_become_jpeg_without_chroma_subsampling(data: bytes) -> None:
    result = prepare_image(data, 64 * 64, 64)
    image = opened(result.data)
    assert (result.extension, result.kept, image.format, image.mode) == ("jpg", False, "JPEG", "RGB")
    assert image.size == (result.width, result.height) == (64, 48)
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
    assert not image.info.get("icc_profile")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_is_applied_before_the_limits(kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = picture(128, 96).transpose(Image.Transpose.ROTATE_90)
    result = prepare_image(encoded(turned, kind, exif=exif), 64 * 64, 64)
    assert (result.width, result.height, result.kept) == (64, 48, False)
    assert ORIENTATION not in opened(result.data).getexif()
    difference = np.asarray(opened(result.data), int) - np.asarray(picture(128, 96).resize((64, 48)), int)
    assert np.abs(difference).mean() < 6


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    pixels = np.asarray(opened(prepare_image(encoded(image), 64 * 64, 64).data), int)
    assert pixels[:, :12].min() > 245
    assert np.abs(pixels[:, 20:] - [255, 0, 0]).max() < 10


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.full((32, 32), 128 * 257, np.uint16))
    pixels = np.asarray(opened(prepare_image(encoded(image), 64 * 64, 64).data), int)
    assert np.abs(pixels - 128).max() <= 1


def test_a_size_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="each side needs at least 16"):
        prepare_image(encoded(picture(400, 20)), 64 * 64, 64)


def test_limits_of_inputs_depend_on_their_number() -> None:
    limits = ImageLimits(100, [40, 30, 20], 10)
    assert [limits.input_limit(k) for k in (1, 2, 3, 4, 5)] == [40, 30, 20, 20, 20]
    assert ImageLimits(100, 50, 10).input_limit(5) == 50
    assert limits.note(3) is None
    assert "3 entries and samples have up to 5 input images; the last entry, 20" in (limits.note(5) or "")


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    write_samples(tmp_path, 12)
    return validate(tmp_path)


def write_samples(folder: Path, count: int) -> None:
    rows = []
    for k in range(count):
        (folder / f"{k}.png").write_bytes(encoded(picture(64, 64, seed=k)))
        (folder / f"{k}.jpg").write_bytes(encoded(picture(100, 60, seed=k), "JPEG"))
        inputs = [[], [f"{k}.jpg"], [f"{k}.jpg", f"{k}.png"]][k % 3]
        task = "ic" if inputs else "t2i"
        row = {
            "task_type": task,
            "instruction": f"Bild {k} ☺\u2028\x85",
            "input_images": inputs,
            "output_image": f"{k}.png",
        }
        rows.append(json.dumps(row))
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "mix.yml").write_text(f"data:\n  - path: {folder / 'a.jsonl'}\n")


def validate(folder: Path) -> Path:
    validate_mixture(folder / "mix.yml", folder / "validation", progress=False, samples_per_shard=5)
    return folder / "validation"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_runs_give_the_same_bytes(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "one", LIMITS, workers=1, progress=False)
    shard_dataset(validated, tmp_path / "two", LIMITS, workers=2, progress=False)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    shards = [f"a-0000{k}.{kind}" for k in range(3) for kind in ("parquet", "tar")]
    assert list(hashes(tmp_path / "one")) == [*shards, "index.parquet"]
    assert str(tmp_path).encode() not in (tmp_path / "one" / "index.parquet").read_bytes()


def test_appended_rows_leave_earlier_shards_alone(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    before = hashes(tmp_path / "out")
    write_samples(tmp_path, 14)
    shard_dataset(validate(tmp_path), tmp_path / "out", LIMITS, progress=False)
    after = hashes(tmp_path / "out")
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["a-00002.parquet", "a-00002.tar", "index.parquet"]


def test_webdataset_alone_reads_the_shards(validated: Path, tmp_path: Path) -> None:
    tars = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    reader = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False).decode("pil")
    samples = list(reader)
    assert [sample["__key__"] for sample in samples] == [f"a_{k:08d}" for k in range(1, 13)]
    assert set(samples[2]) >= {"json", "input_0.jpg", "input_1.jpg", "output.png"}
    assert samples[2]["json"]["instruction"] == "Bild 2 ☺\u2028\x85"
    assert samples[2]["json"]["images"] == [
        {"width": 32, "height": 16, "kept": False},
        {"width": 32, "height": 32, "kept": False},
        {"width": 64, "height": 64, "kept": True},
    ]
    assert samples[2]["input_0.jpg"].size == (32, 16)
    assert samples[1]["input_0.jpg"].size == (48, 32)  # alone, an input may have more pixels


def test_tars_hold_nothing_of_the_run(validated: Path, tmp_path: Path) -> None:
    index = tmp_path / "a-00000.parquet"
    assert write_shard(validated / "shards" / "a-00000.jsonl", tmp_path / "a-00000.tar", index, LIMITS) == 5
    with tarfile.open(tmp_path / "a-00000.tar") as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert [m.name for m in members][:3] == ["a_00000001.json", "a_00000001.output.png", "a_00000002.json"]


def test_the_index_finds_every_member(validated: Path, tmp_path: Path) -> None:
    shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["key"] for row in rows] == [f"a_{k:08d}" for k in range(1, 13)]
    for row in rows:
        data = (tmp_path / "out" / row["tar"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["tar_bytes"], row["tar_sha256"])
        description = data[row["json_offset"] :][: row["json_size"]]
        assert json.loads(description)["key"] == row["key"]
        places = zip(row["image_offsets"], row["image_sizes"], strict=True)
        images = [data[offset:][:size] for offset, size in places]
        assert [opened(image).size for image in images] == list(zip(row["widths"], row["heights"], strict=True))
        assert hashlib.sha256(description + b"".join(images)).hexdigest() == row["sha256"]
    assert (rows[2]["output_tokens"], rows[2]["input_tokens"]) == (16, 2 * 1 + 2 * 2)


def test_images_changed_since_validation_are_errors(validated: Path, tmp_path: Path) -> None:
    manifest, tar = validated / "shards" / "a-00000.jsonl", tmp_path / "a-00000.tar"
    index = tar.with_suffix(".parquet")
    original = (tmp_path / "0.png").read_bytes()
    for content, message in [(original + b"x", "has .* bytes, but"), (original[:-1] + b"x", "sha256")]:
        (tmp_path / "0.png").write_bytes(content)
        with pytest.raises(ValueError, match=rf"0\.png.*{message}.* Validate again"):
            write_shard(manifest, tar, index, LIMITS)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"0\.png does not exist, but .* Validate again"):
        write_shard(manifest, tar, index, LIMITS)
    assert not [*tmp_path.glob("*.tar*"), *tmp_path.glob("*.parquet"), *tmp_path.glob(".*partial")]


def test_the_index_is_ordered_whatever_the_order_of_its_parts(validated: Path, tmp_path: Path) -> None:
    tars = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    parts = [tar.with_suffix(".parquet") for tar in reversed(tars)]
    assert write_index(parts, tmp_path / "index.parquet") == 12
    assert (tmp_path / "index.parquet").read_bytes() == (tmp_path / "out" / "index.parquet").read_bytes()


def test_damaged_tars_are_errors(validated: Path, tmp_path: Path) -> None:
    tars = shard_dataset(validated, tmp_path / "out", LIMITS, progress=False)
    whole = tars[1].read_bytes()
    for length in (len(whole) // 2, len(whole) // 2 // 512 * 512, 100):
        tars[1].write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a-00001\.tar: is no readable shard.*Delete it"):
            read_tar(tars[1])
    with pytest.raises(ValueError, match="shards are named"):
        write_index([tmp_path / "shard.parquet"], tmp_path / "index.parquet")
    with pytest.raises(ConfigError, match="validate first"):
        shard_dataset(tmp_path / "nothing", tmp_path / "out", LIMITS)
