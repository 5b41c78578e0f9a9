"""Sources and images at URLs, and the roots that they stay below."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.pictures import encoded
from helpers.samples import GOOD_ROW, noisy_picture, write_lines
from omnitune.errors import ConfigError, Refused
from omnitune.images.inspect import Depth, inspect_image
from omnitune.images.verdicts import ImageRefused
from omnitune.io import storage
from omnitune.io.url_limits import UrlLimits
from omnitune.validation.dataset import validate_mixture
from omnitune.validation.image_places import image_places
from omnitune.validation.source import Checks, validate_source

pytestmark = pytest.mark.unit


def test_images_stay_below_their_root(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "root").mkdir()
    (folder / "root" / "inside.png").write_bytes(encoded(noisy_picture()))
    (folder / "root" / "link.png").symlink_to(folder / "good.png")
    (folder / "root" / "loop.png").symlink_to("loop.png")
    (folder / "rooted.png").write_bytes(encoded(noisy_picture()))
    names = ["inside.png", "./a/../inside.png", str(folder / "root" / "inside.png"), "root/inside.png"]
    outside = ["../good.png", "link.png", str(folder / "good.png"), "../rooted.png", "s3://bucket/a.png", "/etc/passwd"]
    missing = ["nowhere.png", "loop.png", "a\0b"]
    (folder / "root" / "a").mkdir()
    file = write_lines(
        folder / "root" / "a.jsonl", *({**GOOD_ROW, "output_image": n} for n in names + outside + missing)
    )
    summary = validate_source("a", [file], folder / "out", Checks(image_root="root"), progress=False)
    assert summary["accepted"] == len(names)
    assert summary["reasons"] == {"outside_image_root": len(outside), "missing": len(missing)}


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("s3://bucket/images/a.png", True),
        ("a.png", True),  # beside the .jsonl
        ("s3://bucket/images/../secret.png", False),
        ("s3://bucket/images/%2e%2e/secret.png", False),
        ("../secret.png", False),
        ("s3://bucket/images2/a.png", False),
        ("https://bucket/images/a.png", False),
        ("/data/a.png", False),
    ],
)
def test_a_root_may_be_a_url(image: str, allowed: bool) -> None:
    samples, root = "s3://bucket/images/a.jsonl", "s3://bucket/images"
    if allowed:
        assert image_places(image, samples, root) == ["s3://bucket/images/a.png"]
    else:
        with pytest.raises(Refused, match="outside_image_root"):
            image_places(image, samples, root)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "nonsense://a/b.png", "s3://", "zip://a.png::file:///x.zip", "memory://a/b", "https:///b"],
)
def test_urls_that_no_service_answers_are_refused(url: str) -> None:
    with pytest.raises(Refused, match="bad_url"):
        image_places(url, "a.jsonl")


def put(url: str, data: bytes) -> str:
    with storage.atomic_file(url) as temporary:
        temporary.write_bytes(data)
    return url


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "workers"), [("full", 1), ("full", 2), ("header", 2)])
def test_sources_and_images_may_be_at_urls(folder: Path, s3: str, depth: Depth, workers: int, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    place = f"{s3}/validate-{depth}-{workers}"
    noise = encoded(noisy_picture(400, 300), "JPEG", quality=95)
    put(f"{place}/images/noise.jpg", noise)
    put(f"{place}/empty.png", b"")
    put(f"{place}/text.png", b"this is text")
    names = ["images/noise.jpg", f"{place}/images/noise.jpg", "good.png", str(folder / "good.png")]
    names += ["nowhere.png", "empty.png", "text.png", f"{place}/images"]
    rows = [json.dumps({**GOOD_ROW, "output_image": name}).encode() + b"\n" for name in names]
    samples = put(f"{place}/a.jsonl", b"".join(rows))
    (folder / "mix.yml").write_text(json.dumps({"data": [{"path": samples}]}))
    options = {"progress": False, "max_reject_fraction": 0.5}
    summary = validate_mixture("mix.yml", folder / "out", Checks(depth), workers=workers, **options)
    assert summary["reasons"] == {"missing": 2, "empty_file": 1, "not_an_image": 1}
    rows = pq.read_table(folder / "out" / "samples.parquet").to_pylist()
    assert [row["output_image"] for row in rows] == [names[1], names[1], "good.png", names[3]]
    assert [row["bytes"] for row in rows[:2]] == [[len(noise)]] * 2
    assert {row["file"] for row in rows} == {samples}
    assert summary["sources"]["a"]["files"] == [samples]


def test_the_header_at_a_url_is_read_by_ranges(s3: str) -> None:
    data = encoded(noisy_picture(400, 300), "PNG")
    url = put(f"{s3}/validate-range/a.png", data[: 64 << 10] + bytes(len(data) - (64 << 10)))
    assert inspect_image(url, depth="header").bytes == len(data)
    with pytest.raises(ImageRefused, match=r"corrupt|truncated"):
        inspect_image(url)


def test_sources_at_urls_that_are_not_there_are_named(folder: Path, s3: str) -> None:
    with pytest.raises(ConfigError, match=r"source 'a': s3://.*/nowhere\.jsonl: cannot be read"):
        validate_source("a", [f"{s3}/nowhere.jsonl"], folder / "out", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_cannot_be_used_is_one_error(folder: Path, s3: str, workers: int) -> None:
    file = write_lines(folder / "a.jsonl", *[{**GOOD_ROW, "output_image": "s3://bucket/a.png"}] * 50)
    program = (
        "from pathlib import Path\n"
        "from omnitune.console import job\n"
        "from omnitune.validation.source import validate_source\n"
        f"with job(): validate_source('a', [Path({str(file)!r})], Path('out'), workers={workers}, progress=False)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "s3://bucket/a.png" in done.stderr
    assert "redential" in done.stderr
    assert "Traceback" not in done.stderr


BAD_URLS = [
    "https://user:hunter2@host/a.jpg",
    "https://hunter2@host/a.jpg",
    "https://host/a.jpg?X-Amz-Signature=hunter2",
    "http://host:port/a.jpg",
    "http://host:99999/a.jpg",
    "s3://a:b/a.jpg",
    "simplecache://a/a.jpg",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("depth", ["full", "header"])
def test_urls_that_cannot_be_read_are_verdicts_on_their_rows(tmp_path: Path, depth: Depth) -> None:
    """They end no run, and what credentials they hold is written nowhere."""
    rows = [{"task_type": "t2i", "instruction": "a", "output_image": url} for url in BAD_URLS]
    rows += [{"task_type": "no", "instruction": "a", "output_image": url} for url in BAD_URLS]
    private = ["http://127.0.0.1:1/a.jpg", "http://127.0.0.2:1/a.jpg"]  # the first one is allowed, and nobody answers
    rows += [{"task_type": "t2i", "instruction": "a", "output_image": url} for url in private]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = Checks(depth=depth, urls=UrlLimits(private_networks=("127.0.0.1",)))
    summary = validate_source("a", [tmp_path / "a.jsonl"], tmp_path / "out", checks, progress=False)
    number = len(BAD_URLS)
    reasons = {"bad_url": number, "unknown_task_type": number, "unreachable": 1, "private_address": 1}
    assert summary["reasons"] == reasons
    assert "hunter2" not in (tmp_path / "out/rejected.jsonl").read_text()
