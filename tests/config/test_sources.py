"""Mixture files: nesting, ratios, names, and errors that name what to change."""

import itertools
import tempfile
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitune.config.mixtures.sources import Source, read_mixture
from omnitune.errors import ConfigError

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
    assert {source.name: source.files for source in sources} == {
        "here": (Path("here.jsonl"),),
        "beside": (beside,),
        "nowhere": (Path("nowhere.jsonl"),),
    }
    assert sources[2].places(Path("nowhere.jsonl")) == [Path("nowhere.jsonl"), tmp_path / "sub" / "nowhere.jsonl"]


def test_a_folder_is_one_source_of_all_its_files_in_order(tmp_path: Path) -> None:
    files = tuple(touch(tmp_path / "many" / name) for name in ("b/1.jsonl", "a.jsonl", "b/0.jsonl"))
    touch(tmp_path / "many" / "notes.txt")
    (source,) = read_mixture(write_mixture(tmp_path / "mix.yml", {"path": str(tmp_path / "many")}))
    assert (source.name, source.files) == ("many", (files[1], files[2], files[0]))


def test_hidden_files_of_a_folder_are_none_of_its_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b/.c.jsonl", "b/d.jsonl"):
        path = tmp_path / ".data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "mix.yml").write_text("data: [{path: .data}]")
    [source] = read_mixture(tmp_path / "mix.yml")
    assert [Path(file).name for file in source.files] == ["a.jsonl", "d.jsonl"]


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


def names_of(folder: Path, *paths: str) -> list[str]:
    """Of sources that a mixture in `folder`, the working directory, names by these paths; in the order of the paths."""
    sources = read_mixture(write_mixture(folder / "mix.yml", *({"path": path} for path in paths)))
    by_files = {tuple(map(str, source.files)): source.name for source in sources}
    assert len(by_files) == len(sources) == len({source.name.casefold() for source in sources})
    return [source.name for source in sources]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x.jsonl", "p/x.jsonl"], ["p_x", "x"]),
        (["p/x.jsonl", "q/p/x.jsonl"], ["p_x", "q_p_x"]),
        (["数据.jsonl", "图片.jsonl"], ["图片", "数据"]),
        (["größe.jsonl", "हिन्दी.jsonl", "a b/数 据.jsonl"], ["größe", "हिन्दी", "数_据"]),
        (["a__b.jsonl", "_c.jsonl"], ["a__b", "c"]),
        (["."], ["source"]),
    ],
)
def test_names_hold_nothing_of_where_the_project_lies(tmp_path: Path, monkeypatch, paths: list, names: list) -> None:
    """Two projects of the same files come to the same names."""
    for folder in (tmp_path / "one", tmp_path / "else" / "two"):
        for path in (p for p in (*paths, "own.jsonl") if p.endswith(".jsonl")):
            touch(folder / path)
        monkeypatch.chdir(folder)
        assert names_of(Path(), *paths) == names


# x.jsonl beside x.json, and two versions of a URL, had one name: one of them was lost without a word.
ALIKE = ["d/a-b.jsonl", "d/a_b.jsonl", "A_B.jsonl", "x.jsonl", "x.json", "straße.jsonl", "STRASSE.jsonl", "--.jsonl"]
URLS = ["https://host/y.jsonl?version=1", "https://host/y.jsonl?version=2"]


def test_names_that_no_folder_tells_apart_still_differ_and_move_along(tmp_path: Path, monkeypatch) -> None:
    found = []
    for folder in (tmp_path / "one", tmp_path / "else" / "two"):
        for path in ALIKE:
            touch(folder / path)
        monkeypatch.chdir(folder)
        found.append(names_of(Path(), *ALIKE, *URLS))
    assert found[0] == found[1]
    for start in ("x_", "y_", "strasse_", "a_b_"):
        assert sum(name.casefold().startswith(start) for name in found[0]) == 2


def test_patterns_beside_two_mixtures_are_two_sources(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("p", "q"):
        touch(tmp_path / folder / "train_1.jsonl")
        write_mixture(Path(folder) / "mix.yml", {"path": "train_*.jsonl"})
    assert names_of(Path(), "p/mix.yml", "q/mix.yml") == ["p_train", "q_train"]


def test_a_name_is_the_same_however_an_accent_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_of(Path(), unicodedata.normalize("NFD", "Größe é.jsonl")) == [unicodedata.normalize("NFC", "Größe_é")]


def test_long_names_leave_room_for_what_is_appended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_of(Path(), f"{'a' * 150}.jsonl") == ["a" * 150]
    (name,) = names_of(Path(), f"{'数' * 80}.jsonl")
    assert name.startswith("数" * 40 + "_") and len(name.encode()) < 160


@pytest.mark.slow
def test_the_order_of_entries_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    """Ratios neither, to the last bit: trainings are bound to them. Nor which of two names a file goes by."""
    monkeypatch.chdir(tmp_path)
    for folder in ("p", "q"):
        touch(tmp_path / folder / "x.jsonl")
    (tmp_path / "link.jsonl").symlink_to(touch(tmp_path / "real.jsonl"))
    write_mixture(tmp_path / "inner.yml", *({"path": f"p/{name}.jsonl", "ratio": 0.1} for name in "xyz"))
    entries: list[dict] = [
        {"path": "inner.yml", "ratio": 0.7},
        {"path": "q/x.jsonl", "ratio": 0.3, "type": "edit"},
        {"path": "real.jsonl", "ratio": 0.2, "type": "t2i"},
        {"path": "link.jsonl", "ratio": 0.1, "type": "edit"},
        {"path": "link.jsonl", "ratio": 0.6, "type": "edit"},
    ]
    first = read_mixture(write_mixture(tmp_path / "mix.yml", *entries))
    assert [source.name for source in first] == ["link", "p_x", "q_x", "y", "z"]
    assert (first[0].ratio, first[0].type) == (pytest.approx(0.9 / 1.9), "edit+t2i")
    for order in itertools.permutations(entries):
        assert read_mixture(write_mixture(tmp_path / "mix.yml", *order)) == first


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


def test_a_pattern_is_one_source_of_its_matches_in_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/part-2.jsonl", "a/part-10.jsonl", "a/part-1.jsonl", "a/rest.jsonl", "a/part-3.json", "a/[x].jsonl"):
        touch(tmp_path / name)
    entries = [{"path": name} for name in ("**/part-*.jsonl", "a/*", "a/part-[0-9].jsonl", "a/[x].jsonl")]
    sources = read_mixture(write_mixture(tmp_path / "mix.yml", *entries))
    assert {source.name: [str(file) for file in source.files] for source in sources} == {
        "part": ["a/part-1.jsonl", "a/part-10.jsonl", "b/part-2.jsonl"],
        "a": ["a/[x].jsonl", "a/part-1.jsonl", "a/part-10.jsonl", "a/rest.jsonl"],
        "part_0_9": ["a/part-1.jsonl"],
        "x": ["a/[x].jsonl"],
    }


def test_a_pattern_is_also_looked_for_beside_the_mixture(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = touch(tmp_path / "sub" / "train_1.jsonl")
    write_mixture(tmp_path / "sub" / "mix.yml", {"path": "train_*.jsonl"})
    (source,) = read_mixture(tmp_path / "sub" / "mix.yml")
    assert (source.name, source.files) == ("train", (file,))
    touch(tmp_path / "sub" / "train_0.jsonl")  # which changes no name
    assert read_mixture(tmp_path / "sub" / "mix.yml")[0].name == "train"
    with pytest.raises(ConfigError, match=r"no \.jsonl file matches; tried .*/elsewhere/val_\*.* and .*/sub/val_\*"):
        read_mixture(write_mixture(tmp_path / "sub" / "mix.yml", {"path": "val_*.jsonl"}))


def test_samples_at_urls_keep_their_address(tmp_path: Path) -> None:
    urls = ["s3://bucket/a/x.jsonl", "s3://bucket/b/x.jsonl", "https://host/y.jsonl?version=1"]
    sources = read_mixture(write_mixture(tmp_path / "mix.yml", *({"path": url} for url in [*urls, urls[0]])))
    assert [source.files for source in sources] == [(url,) for url in urls]
    assert ratios(sources) == pytest.approx({"a_x": 1 / 2, "b_x": 1 / 4, "y": 1 / 4})
    assert sources[0].places(urls[0]) == [urls[0]]
    for wrong in ("s3://bucket/folder", "s3://bucket/mix.yml", "s3://bucket/*"):
        with pytest.raises(ConfigError, match=r"a URL names one \.jsonl file"):
            read_mixture(write_mixture(tmp_path / "mix.yml", {"path": wrong}))


# A mixture as a nested list of (ratio, leaf number or mixture).
RATIOS = st.one_of(st.just(0), st.integers(1, 100), st.floats(1e-3, 1e3))
TREES = st.recursive(
    st.integers(0, 5),
    lambda inner: st.lists(st.tuples(RATIOS, inner), min_size=1, max_size=4).filter(
        lambda tree: any(r for r, _ in tree)
    ),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, list))


def write_tree(folder: Path, tree: list, number: list[int]) -> Path:
    """Writes a mixture and those below it; `number` counts the files."""
    number[0] += 1
    path = folder / f"mix{number[0]}.yml"
    entries = []
    for ratio, inner in tree:
        below = folder / f"leaf{inner}.jsonl" if isinstance(inner, int) else write_tree(folder, inner, number)
        entries.append({"path": str(below), "ratio": ratio})
    return write_mixture(path, *entries)


def shares(tree: list, share: float = 1.0) -> dict[str, float]:
    """The same as `read_mixture`, for trees."""
    found: dict[str, float] = {}
    total = sum(ratio for ratio, _ in tree)
    for ratio, inner in tree:
        part = share * ratio / total
        leaves = {f"leaf{inner}": part} if isinstance(inner, int) else shares(inner, part)
        for name, value in leaves.items() if ratio else ():
            found[name] = found.get(name, 0.0) + value
    return found


@pytest.mark.slow
@settings(derandomize=True, max_examples=100, deadline=None)
@given(TREES)
def test_ratios_of_any_nesting(tree: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources = read_mixture(write_tree(Path(folder), tree, [0]))
    expected = shares(tree)
    assert [source.name for source in sources] == sorted(expected)
    assert ratios(sources) == pytest.approx(expected, rel=1e-9)
    assert sum(source.ratio for source in sources) == pytest.approx(1, abs=1e-9)
    assert all(source.ratio > 0 for source in sources)


def test_where_a_file_was_looked_for_is_said_once(tmp_path: Path) -> None:
    mixture = tmp_path / "mix.yml"
    mixture.write_text("data: []\n")
    named = Source("a", (Path("/data/a.jsonl"),), 1.0, "t2i", mixture).missing("/data/a.jsonl")
    assert named == f"{mixture}: /data/a.jsonl does not exist. Check the path."
    relative = Source("a", (Path("a.jsonl"),), 1.0, "t2i", mixture).missing("a.jsonl")
    assert "a.jsonl does not exist. Looked for " in relative


def test_ratios_whose_sum_would_be_no_number_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mix.yml"
    path.write_text(yaml.safe_dump({"data": [{"path": f"{name}.jsonl", "ratio": 1.7e308} for name in "ab"]}))
    with pytest.raises(ConfigError, match=r"data\.0\.ratio"):
        read_mixture(path)


def test_inside_ratios_are_shares_of_each_entry_s_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", 10), ("b", 20), ("c", 30)):
        (tmp_path / f"{name}.jsonl").write_text("{}\n" * rows)
    (tmp_path / "inner.yml").write_text("data: [{path: b.jsonl, ratio: 1}, {path: c.jsonl, ratio: 3}]")
    (tmp_path / "mix.yml").write_text(
        "ratio_type: inside_ratio\ndata: [{path: a.jsonl, ratio: 1}, {path: inner.yml, ratio: 0.6}]"
    )
    ratios = {source.name: source.ratio for source in read_mixture("mix.yml")}
    assert ratios == pytest.approx({"a": 10 / 40, "b": 30 / 40 / 4, "c": 30 / 40 * 3 / 4})
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"inner\.yml'.*inside_ratio: the rows of c\.jsonl cannot be counted"):
        read_mixture("mix.yml")


def test_a_file_that_is_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the published mix.yml, whose paths lack a folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("t2i", "edit"):
        (tmp_path / "configs/train" / folder).mkdir(parents=True)
        (tmp_path / "configs/train" / folder / "all.yml").write_text("data: [{path: x.jsonl}]")
    mix = tmp_path / "configs/train/mix.yml"
    mix.write_text("data: [{path: configs/t2i/all.yml}]")
    with pytest.raises(
        ConfigError, match=r"no such mixture file; .* There is configs/train/t2i/all\.yml: name this one"
    ):
        read_mixture("configs/train/mix.yml")
    (tmp_path / "configs/train/t2i/0.jsonl").write_text("")
    mix.write_text("data: [{path: configs/t2i/0.jsonl}]")
    [source] = read_mixture("configs/train/mix.yml")
    assert "There is configs/train/t2i/0.jsonl: name this one" in source.missing("configs/t2i/0.jsonl")
