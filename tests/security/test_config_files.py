"""YAML files that are small and grow, or that say a thing twice; mixtures that name mixtures without end."""

import os
from pathlib import Path

import pytest
import yaml

from omnitune.config.mixtures.sources import MAX_ENTRIES, read_mixture
from omnitune.config.yaml_file import MAX_BYTES, MAX_NODES, read_yaml
from omnitune.errors import ConfigError

pytestmark = pytest.mark.unit

LEVELS = range(1, 12)
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in LEVELS)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in LEVELS)
CHAINED = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}]\n" for k in range(1, 100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, f"more than {MAX_NODES} keys and values, .* with its aliases written out"),
        (MERGED, f"more than {MAX_NODES} keys and values, .* with its aliases written out"),
        (CHAINED, "more than 64 levels of them, with its aliases written out"),
        ("a:\n" + "- a\n" * 200_000, f"has more than {MAX_NODES} keys and values"),
        ('a: 1\ndata:\n- {path: "a\\0b.jsonl"}\n', r"line 3: 'data\.0\.path': 'a\\x00b\.jsonl' holds a NUL byte"),
        ('"a\\0b": 1\n', "holds a NUL byte"),
        ("a: &a [*a]\n", "line 1: an anchor holds an alias of itself"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 64 levels deep"),
        ("a: " + "[" * 1000, "nested more than 64 levels deep"),
        ("a: 2026-13-45\n", "not valid YAML: month must be in 1..12"),
        ("a: !!bool zz\n", "a value is not what its tag says"),
        ("a: !!timestamp foo\n", "a value is not what its tag says"),
        ('a: !!int ""\n', "a value is not what its tag says"),
        ("a: " + "1" * 5000 + "\n", "not valid YAML: Exceeds the limit"),
        ("x" * (MAX_BYTES + 1), f"more than {MAX_BYTES} bytes"),
        ("data: 1\nseed: 2\ndata: 3\n", "the key 'data' stands on line 1 and again on line 3"),
        ("train:\n  a: 1\n  b: 2\n  a: 1\n", "the key 'a' stands on line 2 and again on line 4"),
        ("list:\n- {a: 1, a: 2}\n", "the key 'a' stands on line 2 and again on line 2"),
    ],
)
def test_a_file_that_grows_or_repeats_itself_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yml")
    with pytest.raises(ConfigError, match=r"a\.yml: cannot be read \(it is no regular file\)"):
        read_yaml(tmp_path / "a.yml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)


def test_honest_aliases_merges_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_text("\ufeffa: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n", encoding="utf-8")
    both = {"x": 1, "y": 2}
    assert read_yaml(path) == {"a": both, "b": {"x": 1, "y": 3}, "c": [both, both]}


@pytest.mark.parametrize("number", ["0400", "-010", "10:00", "1:30.5"])
def test_numbers_of_other_bases_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.yml"
    path.write_text(f"a: 1\nb: [1, {number}]\n")
    with pytest.raises(ConfigError, match=rf"a\.yml, line 2: {number} would be read as"):
        read_yaml(path)
    path.write_text(f"b: ['{number}', 0, 0.5, 4_000, 0x10, 08]\n")
    assert read_yaml(path)["b"][0] == number


def test_mixtures_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for level in range(8):
        below = f"{level + 1}.yml" if level < 7 else "a.jsonl"
        Path(f"{level}.yml").write_text(yaml.safe_dump({"data": [{"path": below}] * 20}))
    with pytest.raises(ConfigError, match=rf"0\.yml: names more than {MAX_ENTRIES} entries through its mixtures"):
        read_mixture("0.yml")


def test_a_long_chain_of_mixtures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for level in range(100):
        Path(f"{level}.yml").write_text(yaml.safe_dump({"data": [{"path": f"{level + 1}.yml"}]}))
    with pytest.raises(ConfigError, match=r"name each other more than 32 times in a row"):
        read_mixture("0.yml")
