"""Mixture files: nesting, ratios, names, and errors that name what to change."""

from pathlib import Path

import pytest
import yaml

from omnitune.config import ConfigError
from omnitune.data.mixture import Source, read_mixture, relevant_files

pytestmark = pytest.mark.unit


def write_mixture(path: Path, *entries: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"data": list(entries)}))
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def ratios(sources: list[Source]) -> dict[str, float]:
    return {source.name: source.ratio for source in sources}


def test_ratios_multiply_along_nested_files_and_sum_to_one(tmp_path: Path) -> None:
    inner = write_mixture(tmp_path / "inner.yml", {"path": "a.jsonl", "ratio": 1}, {"path": "b.jsonl", "ratio": 3})
    entries = [{"path": str(inner), "ratio": 2}, {"path": "c.json", "ratio": 6}, {"path": "d.jsonl", "ratio": 0}]
    sources = read_mixture(write_mixture(tmp_path / "mix.yml", *entries))
    assert ratios(sources) == pytest.approx({"a": 1 / 16, "b": 3 / 16, "c": 3 / 4})
    assert sum(source.ratio for source in sources) == pytest.approx(1, abs=1e-12)
    assert relevant_files(tmp_path / "mix.yml") == [tmp_path / "mix.yml", inner]


def test_the_published_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mix.yml"
    path.write_text("ratio_type: inside_ratio\n\ndata:\n  -\n    path: a.jsonl\n    type: edit\n    ratio: !!float 1\n")
    assert read_mixture(path) == [Source("a", (Path("a.jsonl"),), 1.0, "edit", path)]


def test_paths_count_from_the_working_directory_then_from_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "here.jsonl")
    touch(tmp_path / "sub" / "here.jsonl")
    beside = touch(tmp_path / "sub" / "beside.jsonl")
    entries = [{"path": name} for name in ("here.jsonl", "beside.jsonl", "nowhere.jsonl")]
    sources = read_mixture(write_mixture(tmp_path / "sub" / "mix.yml", *entries))
    assert [source.files for source in sources] == [(Path("here.jsonl"),), (beside,), (Path("nowhere.jsonl"),)]
    assert sources[2].places(Path("nowhere.jsonl")) == [Path("nowhere.jsonl"), tmp_path / "sub" / "nowhere.jsonl"]


def test_a_folder_is_one_source_of_all_its_files_in_order(tmp_path: Path) -> None:
    files = tuple(touch(tmp_path / "many" / name) for name in ("b/1.jsonl", "a.jsonl", "b/0.jsonl"))
    touch(tmp_path / "many" / "notes.txt")
    (source,) = read_mixture(write_mixture(tmp_path / "mix.yml", {"path": str(tmp_path / "many")}))
    assert (source.name, source.files) == ("many", (files[1], files[2], files[0]))


def test_the_same_file_twice_is_one_source_with_the_sum(tmp_path: Path) -> None:
    a = touch(tmp_path / "a.jsonl")
    inner = write_mixture(tmp_path / "inner.yml", {"path": str(a), "type": "edit"})
    entries = [{"path": str(a)}, {"path": str(tmp_path / "x" / ".." / "a.jsonl")}, {"path": str(inner)}]
    (tmp_path / "x").mkdir()
    (source,) = read_mixture(write_mixture(tmp_path / "mix.yml", *entries))
    assert (source.name, source.ratio, source.type) == ("a", pytest.approx(1), "default+edit")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["p/x.jsonl", "q/x.jsonl", "y.jsonl"], ["p_x", "q_x", "y"]),
        (["r/p/x.jsonl", "s/p/x.jsonl"], ["r_p_x", "s_p_x"]),
        (["a b-c.v2.jsonl"], ["a_b_c_v2"]),
    ],
)
def test_names_are_stems_lengthened_until_unique(tmp_path: Path, paths: list[str], names: list[str]) -> None:
    entries = [{"path": str(tmp_path / path)} for path in paths]
    assert [source.name for source in read_mixture(write_mixture(tmp_path / "mix.yml", *entries))] == names


def test_names_that_no_folder_tells_apart_still_differ(tmp_path: Path) -> None:
    entries = [{"path": str(tmp_path / name)} for name in ("a-b.jsonl", "a_b.jsonl", "数据.jsonl", "A_B.jsonl")]
    names = [source.name for source in read_mixture(write_mixture(tmp_path / "mix.yml", *entries))]
    assert len({name.lower() for name in names}) == 4
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in names)


def test_a_circle_is_named(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yml", tmp_path / "b.yml"
    write_mixture(a, {"path": str(b)})
    write_mixture(b, {"path": str(a)})
    with pytest.raises(ConfigError, match=r"a\.yml -> .*b\.yml -> .*a\.yml"):
        read_mixture(a)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "x.parquet"}, "neither a .jsonl file"),
        ({"path": "no_such_folder"}, "neither a .jsonl file.*tried .* and "),
        ({"path": "missing.yml"}, "no such mixture file; tried .* and "),
        ({"path": "a.jsonl", "ratio": 0}, "ratios of all entries are 0"),
        ({"path": "a.jsonl", "ratio": -1}, r"data\.0\.ratio: -1"),
        ({"path": "a.jsonl", "ration": 1}, "Did you mean 'ratio'"),
        ({"path": "."}, "no .jsonl file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, monkeypatch, entry: dict, message: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match=message):
        read_mixture(write_mixture(tmp_path / "sub" / "mix.yml", entry))


def test_an_empty_mixture_and_a_wrong_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data"):
        read_mixture(write_mixture(tmp_path / "mix.yml"))
    with pytest.raises(ConfigError, match=r"a mixture is a \.yml file"):
        read_mixture(tmp_path / "a.jsonl")
