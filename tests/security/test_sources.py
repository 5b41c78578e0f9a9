"""Mixtures that name files and hosts which are none of their business, and what a ledger repeats of them."""

import json
import os
from pathlib import Path

import pytest
import yaml

from omnitune.config.mixtures import sample_files
from omnitune.config.mixtures.sources import read_mixture
from omnitune.errors import ConfigError
from omnitune.io import storage
from omnitune.validation.source import validate_source

pytestmark = pytest.mark.unit


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside a folder with a private file."""
    (tmp_path / "project").mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "keys.jsonl").write_text('{"private_key": "hunter2"}\nhunter2\n')
    (tmp_path / "private" / "mix.yml").write_text("data: [{path: keys.jsonl}]\n")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def mixture(*paths: str) -> Path:
    Path("mix.yml").write_text(yaml.safe_dump({"data": [{"path": path} for path in paths]}))
    return Path("mix.yml")


@pytest.mark.parametrize(
    "path",
    ["{}/keys.jsonl", "../private/keys.jsonl", "{}", "{}/*.jsonl", "{}/mix.yml", "link.jsonl", "linked", "li*.jsonl"],
)
def test_sources_outside_the_project_are_refused(project: Path, path: str) -> None:
    Path("link.jsonl").symlink_to(project / "private" / "keys.jsonl")
    Path("linked").symlink_to(project / "private")
    named = mixture(path.format(project / "private"))
    with pytest.raises(ConfigError, match=r"data\.0\.path.*is outside.*data\.source_root"):
        read_mixture(named)
    assert read_mixture(named, [str(project / "private"), "."])
    with pytest.raises(ConfigError, match="is outside"):
        read_mixture(named, [str(project / "other")])


def test_a_wildcard_leads_nowhere_else(project: Path) -> None:
    Path("a").mkdir()
    with pytest.raises(ConfigError, match=r"`\.\.` stands behind a wildcard"):
        read_mixture(mixture("*/../../private/*.jsonl"))
    with pytest.raises(ConfigError, match=r": / is outside the working directory\. If"):
        read_mixture(mixture("/**/*.jsonl"))


def test_a_pattern_does_not_go_on_for_ever(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by its own wildcards nor by links in what it goes through, and no mixture looks at a disk many times."""
    for pattern in ("**/**/*.jsonl", "**/a/**/*.jsonl"):
        with pytest.raises(ConfigError, match=r"mix\.yml: data\.0\.path: .*`\*\*` stands more than once"):
            read_mixture(mixture(pattern))
    Path("a/b").mkdir(parents=True)
    Path("a/b/c.jsonl").touch()
    for name in ("x", "y", "z"):
        Path("a", name).symlink_to(".")
    [source] = read_mixture(mixture("a/**/*.jsonl"))
    assert source.files == (Path("a/b/c.jsonl"),)
    for level in range(12):
        Path(f"d{level}").mkdir()
        for name in "xy":
            Path(f"d{level}", name).symlink_to(f"../d{level + 1}")
    monkeypatch.setattr(sample_files, "MAX_WALKED", 1000)
    with pytest.raises(ConfigError, match=r"data\.0\.path: 'd0/\*\*': more than 1000 files and folders"):
        read_mixture(mixture("d0/**"))
    with pytest.raises(ConfigError, match=r"data\.\d+\.path: 'a': more than 1000 files and folders"):
        read_mixture(mixture(*["a"] * 500))


@pytest.mark.parametrize("path", ["a", "a/**/*.jsonl"])
def test_links_to_themselves_and_folders_without_end(project: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    Path("a/b/c/e").mkdir(parents=True)
    Path("a/b/c/d.jsonl").touch()
    Path("a/b/loop").symlink_to("loop")
    [source] = read_mixture(mixture(path))
    assert source.files == (Path("a/b/c/d.jsonl"),)
    monkeypatch.setattr(sample_files, "MAX_LEVELS", 2)
    with pytest.raises(ConfigError, match=r"data\.0\.path: .*'a/b/c/e' lies more than 2 folders deep"):
        read_mixture(mixture(path))
    with pytest.raises(ConfigError, match="more than 2 parts behind its first wildcard"):
        read_mixture(mixture("a/*/*/*/*.jsonl"))


def test_a_pipe_is_no_source(project: Path) -> None:
    os.mkfifo("a.jsonl")
    with pytest.raises(ConfigError, match=r"data\.0\.path: 'a\.jsonl': a\.jsonl is no regular file"):
        read_mixture(mixture("a.jsonl"))
    with pytest.raises(ConfigError, match=r"a\.jsonl: cannot be read \(it is no regular file\)"):
        validate_source("a", ["a.jsonl"], Path("out"), progress=False)


def test_a_mixtures_own_folder_is_allowed(project: Path) -> None:
    assert read_mixture(project / "private" / "mix.yml")[0].name == "keys"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd#.jsonl",
        "reference://a/b.jsonl",
        "filecache::file:///etc/passwd.jsonl",
        "simplecache::http://host/a.jsonl",
        "s3::http://host/a.jsonl",
        "ftp://host/a.jsonl",
        "http:///a.jsonl",
        "https://user:hunter2@host/a.jsonl",
        "https://host/a.jsonl?AWSAccessKeyId=hunter2",
    ],
)
def test_other_schemes_chains_and_credentials_are_refused(project: Path, url: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_mixture(mixture(url))
    assert "hunter2" not in str(error.value)


def test_a_root_may_be_a_url(project: Path) -> None:
    named = mixture("s3://bucket/mine/a.jsonl")
    assert read_mixture(named) == read_mixture(named, ["s3://bucket/mine"])
    for root in ("s3://bucket/min", "s3://other", "."):
        with pytest.raises(ConfigError, match="is outside"):
            read_mixture(named, [root])


def test_the_ledger_repeats_the_keys_of_samples_alone(project: Path) -> None:
    Path("a.jsonl").write_text(
        'hunter2\n"hunter2"\n{"private_key": "hunter2"}\n'
        '{"task_type": "t2i", "instruction": "a", "password": "hunter2"}\n'
    )
    validate_source("a", ["a.jsonl"], Path("out"), progress=False)
    ledger = Path("out/rejected.jsonl").read_text()
    assert "hunter2" not in ledger
    rows = [json.loads(line)["row"] for line in ledger.splitlines()]
    assert rows == [None, None, None, {"task_type": "t2i", "instruction": "a"}]


@pytest.mark.parametrize(
    "name",
    ["X-Amz-Signature", "X-Amz-Security-Token", "x-amz-credential", "AWSAccessKeyId", "Signature", "Key-Pair-Id",
     "Policy", "api_key", "apikey", "token", "access_token", "X-Goog-Signature", "sig", "accessToken", "key", "auth",
     "jwt", "code", "X-Amz-Sign%61ture", "%74oken", "to%6ben", "API%2DKEY", "authToken", "subscription-key",
     "password", "hmac"],
)  # fmt: skip
def test_what_signs_a_url_is_redacted(name: str) -> None:
    for separator in "?&;#":
        assert "hunter2" not in storage.redact(f"https://host/a.jpg{separator}{name}=hunter2")
    assert storage.redact("https://me:hunter2@hunter2@host/a@b?c@d") == "https://host/a@b?c@d"
    plain = "https://host/a.jpg?size=3&tokens=4&design=5&keyword=6&author=7&codec=8&monkey=9#key"
    assert storage.redact(plain) == plain
