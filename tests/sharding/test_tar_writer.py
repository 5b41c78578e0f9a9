"""Tars as they are written: their bytes depend on the members alone, and each member lies where it is said to."""

import io
import random
import tarfile
from pathlib import Path

import pytest

from omnitune.sharding.tar_writer import MemberWriter

pytestmark = pytest.mark.unit

MEMBERS = [
    (key, extension, random.Random(f"{key}.{extension}").randbytes(size))
    for key in ("photos_00000001", "é" * 60, "long" * 40)
    for extension, size in [("json", 0), ("output.jpg", 1), ("input_0.jpg", 512), ("a.png", 70_001)]
]


def test_bytes_are_those_of_a_plain_tar_of_no_time_and_no_owner(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "plain.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for key, extension, content in MEMBERS:
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with MemberWriter(tmp_path / "written.tar") as members:
        offsets = [members.add(*member) for member in MEMBERS]
    data = (tmp_path / "written.tar").read_bytes()
    assert data == (tmp_path / "plain.tar").read_bytes()
    for (_, _, content), offset in zip(MEMBERS, offsets, strict=True):
        assert data[offset : offset + len(content)] == content
