"""The report of small synthetic runs: what it says, what it escapes, and that equal runs give equal bytes."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.runs import (
    draw,
    save_json,
    save_rows,
    write_encoded,
    write_evaluation,
    write_options,
    write_prepared,
    write_prompts,
    write_run,
)
from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt
from omnitune.evaluation.weights import EvaluatedWeights, describe_weights
from omnitune.io.files import sealed, sha256_of
from omnitune.report.build import BenchmarkEntry, build_report
from omnitune.report.examples import choose_examples
from omnitune.report.images import BYTES_OF_ALL, Thumbnails

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole run; not to be changed."""
    return write_run(tmp_path_factory.mktemp("built"))


def test_the_page_says_what_happened_and_needs_nothing_else(built: Path) -> None:
    page = built.read_text(encoding="utf-8")
    assert '<span class="word better">better</span>' in page
    text = visible(page)
    assert "Better on scenes (picture right 12.5 % → 93.8 %, +81.2 points [+62.5, +100.0] on 16 prompts)" in text
    assert '<span class="word worse">worse</span>' in page
    assert "held-out loss ↓ step 120 16 1.1000 [1.1000, 1.1000] -0.8000 [-0.8000, -0.8000] better" in text
    assert "--transformer_path" not in text  # made-up weights are those of the base
    assert "40.010 %" in page
    assert "data/edit.jsonl:2" in page
    assert page.count('class="plot"') == 4
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert all(address.startswith(("data:", "#", "../", "images/")) for address in addresses)
    assert "http" not in "".join(addresses)
    assert "url(http" not in page
    assert "@import" not in page
    assert str(built.parents[3]) not in page


def test_the_figures_stand_in_tables_beside_the_page(built: Path) -> None:
    folder = built.parent
    scores, images, metrics = (pd.read_csv(folder / f"{name}.csv") for name in ("scores", "generations", "metrics"))
    assert list(scores.columns) == [
        *("benchmark", "task", "measure", "row", "n", "missing"),
        *("mean", "base_mean", "difference", "low", "high", "verdict"),
    ]
    passed = scores[(scores["measure"] == "check_passed") & (scores["benchmark"] == "scenes")].set_index(
        ["task", "row"]
    )
    assert list(passed.index) == [(task, row) for task in ("all", "edit", "t2i") for row in ("base", "step 120")]
    line = passed.loc[("all", "step 120")]
    assert (line["n"], line["missing"], line["mean"], line["base_mean"]) == (16, 0, 0.9375, 0.125)
    assert line["low"] > 0.5 and line["verdict"] == "better"
    assert passed.loc[("all", "base"), ["difference", "low", "high", "verdict"]].isna().all()
    assert len(images) == 2 * (16 + 8) and set(images["row"]) == {"base", "step 120"}
    assert all((folder / path).is_file() for path in images["image"])
    assert images[images["benchmark"] == "scenes"].groupby("row")["check_passed"].mean()["base"] == 0.125
    rows = [json.loads(line) for line in (folder.parent / "logs/metrics.jsonl").read_text().splitlines()]
    assert list(metrics["step"]) == [row["step"] for row in rows]


def visible(page: str) -> str:
    """The text of a page, with one space between words."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_the_data_section_shows_all_figures(built: Path) -> None:
    page = visible(built.read_text(encoding="utf-8"))
    for text in (
        "Pixels 1.23 G",
        "Bytes of images 45.7 MB",
        "Text tokens not counted",
        "Repeated output images 7",
        "Rejected 3 (0.25 %)",
        "edit 40.000 % 40.010 % 39.870 % 4 801 9.60 5.03 G 21.5 M",
        "to 512x512 1 100 91.7 % to 768x768 0 0.0 % to 1024x1024 100 8.3 %",
        "Cjk 100 8.3 %",
        "5 more 40 ",
        "edit 503 500 3 missing 3",
        "t2i 700 700 0 none",
        "edit 2 8 8 MB 1 MB 12 k",
        "t2i 1 4 4 MB 1 MB 4 k",
        "kept as jpeg, quality 95",
    ):
        assert text in page
    assert "to 256x256" not in page
    assert "Encoded data" not in page


def test_encoded_data_is_shown_where_it_is_trained_on(tmp_path: Path) -> None:
    write_options(tmp_path / "run", encode=True)
    write_encoded(tmp_path / "prepared/encoded/demo")
    page = build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html").read_text()
    assert "demo 3 600 kB 200 kB bf16" in visible(page)


def test_a_summary_of_fewer_figures_is_shown_as_it_is(tmp_path: Path) -> None:
    write_options(tmp_path / "run")
    summary = {"rows": 5, "accepted": 5, "rejected": 0, "task_types": {"t2i": 5}}
    save_json(tmp_path / "prepared/validation/summary.json", summary)
    page = build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html").read_text()
    assert "Task types" in page
    assert "Shards" not in page


def test_text_of_the_data_cannot_become_markup(built: Path) -> None:
    page = built.read_text(encoding="utf-8")
    assert page.count("<script") == 1, "our own"
    assert "&lt;script&gt;document.title" in page


def test_equal_runs_give_equal_bytes(built: Path, tmp_path: Path) -> None:
    assert write_run(tmp_path / "again").read_bytes() == built.read_bytes()


def test_ids_are_unique_in_the_page(built: Path) -> None:
    ids = re.findall(r'\bid="([^"]+)"', built.read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_a_run_without_benchmarks_and_metrics_has_a_page(tmp_path: Path) -> None:
    write_options(tmp_path / "run")
    page = build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html").read_text()
    for text in ("No benchmark is configured", "No training metrics", "No validation summary", "No weights were"):
        assert text in page
    assert 'href="#images"' not in page


def test_prompts_without_targets_show_their_images(tmp_path: Path) -> None:
    entry = BenchmarkEntry("free", Benchmark(prompts="p.jsonl"), write_prompts(tmp_path / "p", 3, targets=False))
    write_options(tmp_path / "run")
    for step in (0, 120):
        write_evaluation(tmp_path / "run", entry, step, 0.5, checked=False)
    page = build_report(tmp_path / "run", tmp_path / "prepared", [entry], tmp_path / "index.html").read_text()
    assert "no prompt has a target or a check" in page
    assert page.count("<img ") == 3 * 2 + 1 + 2


def test_long_lists_of_rejected_rows_are_cut_and_counted(tmp_path: Path) -> None:
    write_options(tmp_path / "run")
    write_prepared(tmp_path / "prepared", rejected=130)
    page = build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html").read_text()
    assert "data/edit.jsonl:99<" in page
    assert "data/edit.jsonl:100<" not in page
    assert "30 more stand in rejected.jsonl" in page


def test_missing_or_incomparable_scores_are_errors(tmp_path: Path) -> None:
    entry = BenchmarkEntry("scenes", Benchmark(prompts="p.jsonl"), write_prompts(tmp_path / "p", 2))
    experiment = tmp_path / "run"
    with pytest.raises(ValueError, match=r"options\.yml: is missing"):
        build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html")
    write_options(experiment)
    write_evaluation(experiment, entry, 0, 0.5)
    with pytest.raises(ValueError, match=r"120/scenes/scores\.json: cannot be read \(.*No such file.*--force"):
        build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html")
    write_evaluation(experiment, entry, 120, 0.5, protocol="00" * 32)
    with pytest.raises(ValueError, match="under different protocols"):
        build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html")
    write_evaluation(experiment, entry, 0, 0.5, protocol="00" * 32)
    with pytest.raises(
        ValueError, match=r"0/scenes: was evaluated under another protocol than benchmark 'scenes' is now"
    ):
        build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_files_that_were_edited_are_no_part_of_a_report(tmp_path: Path) -> None:
    entry = BenchmarkEntry("scenes", Benchmark(prompts="p.jsonl"), write_prompts(tmp_path / "p", 2))
    experiment = tmp_path / "run"
    write_options(experiment)
    for step in (0, 120):
        write_evaluation(experiment, entry, step, 0.5)
    folder = experiment / "evaluation/120/scenes"

    def build() -> Path:
        return build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html")

    for path, problem in (
        (folder / "scores.json", r"scores\.json: was changed after it was written\. Score again"),
        (folder / "generations.jsonl", r"generations\.jsonl: was changed after it was written\. Score again"),
        (folder / "images/t2i-000.png", r"t2i-000\.png: is not the image that was drawn .*Draw it again"),
    ):
        before = path.read_bytes()
        path.write_bytes(before.replace(b"0", b"1") if path.suffix != ".png" else before[:-1])
        with pytest.raises(ValueError, match=problem):
            build()
        assert not (tmp_path / "index.html").exists()
        path.write_bytes(before)
    assert build().exists()


DEEP = "[" * 3000
STEP = json.dumps({"step": 121, "loss": 1.0})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("logs/metrics.jsonl", f"{STEP}\n5\n", r":2: cannot be read: it holds no JSON object\. Take the line out"),
        ("logs/metrics.jsonl", '{"step": "x", "loss": [1]}\n', ':1: step: "x" is not allowed'),
        ("logs/metrics.jsonl", '{"step": 1, "loss": [1]}\n', r":1: loss: \[1\] is not allowed"),
        ("logs/metrics.jsonl", '{"step": 1e999}\n', ":1: step: Infinity is not allowed"),
        ("logs/metrics.jsonl", '{"loss": 1}\n', r":1: step: is missing\."),
        ("logs/metrics.jsonl", f"{DEEP}\n", ":1: cannot be read: it is no JSON"),
        ("logs/metrics.jsonl", b"\xff\n", ":1: cannot be read: it is no JSON"),
        (
            "logs/starts.jsonl",
            '{"time": "now", "first_step": 1, "device": "", "processes": 1}\n',
            ':1: time: "now" is not',
        ),
        ("logs/starts.jsonl", "{}\n", r":1: time: is missing\."),
        (
            "logs/samples/prompts.jsonl",
            '{"key": "a", "instruction": "b", "inputs": 5}\n',
            ":1: inputs: 5 is not allowed",
        ),
        (
            "train.json",
            "5",
            r": cannot be read: it holds no JSON object\. .* snakemake --cores 2 --force \S+/train\.json$",
        ),
        ("train.json", "", ": cannot be read: it is empty"),
        ("train.json", b"\xff", ": cannot be read: it is no JSON"),
        ("train.json", '{"states": 5}', ": states: 5 is not allowed"),
        ("train.json", '{"mixture": [{"source": "a"}]}', r": mixture\.0\.asked: is missing"),
        (
            "train.json",
            json.dumps({"identity": json.loads("[" * 40 + "]" * 40)}),
            ": .* nested more than 32 levels deep",
        ),
        ("checkpoint-120/transformer/conversion.json", DEEP, ": cannot be read: it is no JSON"),
        ("checkpoint-120/transformer/conversion.json", "{}", r": files: is missing"),
        ("evaluation/120/scenes/scores.json", "5", r": cannot be read: it holds no JSON object\. Score again: "),
        ("evaluation/120/scenes/scores.json", DEEP, ": cannot be read: it is no JSON"),
        ("evaluation/120/scenes/scores.json", json.dumps(sealed({"weights": []})), ": protocol: is missing"),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    experiment, prompts = tmp_path / "run", write_prompts(tmp_path / "p", 2)
    write_options(experiment)
    entry = BenchmarkEntry("scenes", Benchmark(prompts="p.jsonl"), prompts)
    for step in ("0", "120"):
        write_evaluation(experiment, entry, step, 0.5, checked=False)
    draw(experiment / "logs/samples/00000100/a.png", "crimson")
    path = experiment / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"^{path}{message}"):
        build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html")


def test_a_damaged_summary_of_the_data_is_named(tmp_path: Path) -> None:
    write_options(tmp_path / "run")
    summary = tmp_path / "prepared/validation/summary.json"
    save_json(summary, {"sources": {"a": 5}})
    with pytest.raises(ValueError, match=rf"{summary}: sources\.a: 5 is not allowed"):
        build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html")


def test_scores_of_weights_that_are_others_now_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = BenchmarkEntry("scenes", Benchmark(prompts="p.jsonl"), write_prompts(tmp_path / "p", 2))
    experiment, base = Path("run"), Path("base")
    converted = experiment / "checkpoint-120/transformer"
    write_options(experiment)
    save_json(base / "manifest.json", {"transformer/a": "1"})
    save_json(converted / "conversion.json", {"files": {}})
    for step, transformer in ((0, None), (120, converted)):
        weights = describe_weights(EvaluatedWeights(base, transformer, None))
        write_evaluation(experiment, entry, step, 0.5, weights=weights)

    def build() -> Path:
        return build_report(experiment, Path("prepared"), [entry], Path("index.html"))

    assert build().exists()
    save_json(converted / "conversion.json", {"files": {}, "changed": True})
    with pytest.raises(
        ValueError, match=r"120/scenes: was evaluated with other weights than .*\(step 120\)\. Evaluate"
    ):
        build()
    save_json(base / "manifest.json", {"transformer/a": "2"})
    with pytest.raises(ValueError, match=r"0/scenes: was evaluated with other weights than are there now \(base\)"):
        build()


def test_weights_of_another_checkpoint_than_the_trained_one_are_refused(tmp_path: Path) -> None:
    write_options(tmp_path / "run")
    converted = tmp_path / "run/checkpoint-120/transformer"
    for states, problem in (({"120": "a"}, False), ({}, False), ({"120": "b"}, True)):
        save_json(tmp_path / "run/train.json", {"states": states})
        save_json(converted / "conversion.json", {"files": {}, "checkpoint_sha256": "a"})
        if not problem:
            build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html")
            continue
        expected = rf"checkpoint-120/transformer: was converted from another .*--force {converted}/conversion\.json"
        with pytest.raises(ValueError, match=expected):
            build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html")


def test_examples_are_chosen_by_key_and_spread_over_task_types() -> None:
    prompts = [Prompt(f"{task}-{i:02d}", task, "x") for task in ("edit", "t2i") for i in range(20)]
    shown, rest = choose_examples(prompts[::-1])
    assert [prompt.key for prompt in shown] == [f"{task}-{i:02d}" for task in ("edit", "t2i") for i in range(6)]
    assert len(rest) == 28


def build_training(tmp_path: Path, rows: list[dict[str, Any]], **train: Any) -> str:
    """The page of a run that has left these metrics and this train.json, and nothing else."""
    write_options(tmp_path / "run")
    save_rows(tmp_path / "run/logs/metrics.jsonl", rows)
    save_json(tmp_path / "run/train.json", train)
    return build_report(tmp_path / "run", tmp_path / "prepared", [], tmp_path / "index.html").read_text()


def test_averaged_weights_have_a_column_of_their_own(tmp_path: Path) -> None:
    experiment = tmp_path / "run"
    write_options(experiment, ema_decay=0.99)
    entry = BenchmarkEntry("scenes", Benchmark(prompts="p.jsonl"), write_prompts(tmp_path / "p", 6))
    for step, quality in (("0", 0.2), ("120", 0.9), ("120-ema", 0.1)):
        write_evaluation(experiment, entry, step, quality, checked=False)
    for folder in ("transformer", "transformer_ema"):
        weights = experiment / f"checkpoint-120/{folder}"
        save_json(weights / "config.json", {})
        facts = {"sha256": sha256_of(weights / "config.json"), "bytes": 2}
        save_json(weights / "conversion.json", {"files": {"config.json": facts}})
    page = build_report(experiment, tmp_path / "prepared", [entry], tmp_path / "index.html").read_text()
    text = visible(page)
    assert '<span class="word better">better</span>' in page  # though the average is worse than the base
    assert "scenes: held-out loss 1.8000 → 1.1000, -0.7000 [-0.7000, -0.7000] on 6 prompts, step 120." in text
    assert "step 120 (EMA) 6 1.9000 [1.9000, 1.9000] +0.1000 [+0.1000, +0.1000] worse" in text
    assert "Take step 120:" in text and "It is the best of 2 checkpoints." in text
    assert page.count('alt="image of step 120 (EMA) for') == 6
    assert ">step 120 (EMA)</text>" in page  # of the plot
    assert text.index("checkpoint-120/transformer/config.json") < text.index("checkpoint-120/transformer_ema/config")
    assert "Averaging of weights EMA, decay 0.99" in text


def test_skipped_steps_are_counted_and_leave_gaps(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(1, 41)]
    for step in range(10, 22):
        rows[step - 1] |= {"loss": None, "grad_norm": None, "skipped": True, "loss_by_timestep": None}
    page = build_training(tmp_path, rows)
    named = ", ".join(map(str, range(10, 20)))
    assert f"Skipped steps 12, as their loss or gradient was not finite: {named}, ..." in visible(page)
    assert page.count('class="plot"') == 2
    assert "nan" not in page.lower().replace("provenance", "")
    assert "Skipped" not in build_training(tmp_path / "other", [{"step": 1, "loss": 1.0}])


def test_heldout_loss_while_training_is_plotted_by_task(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1.0} for step in range(1, 31)]
    for step in (10, 20, 30):
        by_task = {"edit": 0.5 + 1 / step, "t2i": 0.4 + 1 / step}
        rows.append({"step": step, "val_loss": 0.45 + 1 / step, "val_loss_by_task": by_task})
    page = build_training(tmp_path, rows)
    assert "Held-out loss while training" in page
    assert all(f">{name}</text>" in page for name in ("all", "edit", "t2i"))
    plain = build_training(tmp_path / "other", [{"step": 5, "loss": 1.0, "val_loss": 0.5}])
    assert "Held-out loss while training" in plain
    assert ">all</text>" not in plain


def test_time_memory_and_parallelism_of_the_training(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": step, "seconds": 2.0, "data_seconds": 0.1, "forward_seconds": 0.5, "backward_seconds": 1.0}
        | {"optimizer_seconds": 0.2, "tokens_per_second": 1000.0 * step, "memory_mb": 2000.0 + step, "mfu": 0.4}
        for step in range(1, 6)
    ]
    rows[-1] |= {"seconds": 4.0, "save_seconds": 2.0}
    text = visible(build_training(tmp_path, rows, strategy="ddp", strategy_reason="it fits <b>"))
    for expected in (
        "Tokens per second 3 k (median)",
        "Share of the peak FLOPs 40.0 % (median)",
        "Most memory of a process 2 GB",
        "Parallelism: it fits &lt;b&gt;.",
        "waiting for data 0.1000 4.2 %",
        "forward 0.5000 20.8 %",
        "checkpoints 2.0000 16.7 %",
        "other 0.2000 8.3 %",
    ):
        assert expected in text
    bare = visible(build_training(tmp_path / "other", [{"step": 1, "loss": 1.0}]))
    assert not any(word in bare for word in ("Time of a step", "Restarts", "Tokens per second", "Parallelism"))


def test_images_drawn_while_training_show_the_first_and_the_last(tmp_path: Path) -> None:
    samples = tmp_path / "run/logs/samples"
    for step in (100, 200, 300):
        draw(samples / f"{step:08d}/cat.png", "crimson")
    draw(samples / "00000300/late.png", "crimson")
    page = build_training(tmp_path, [])
    assert page.count("<img ") == 2 + 2
    assert 'alt="image of step 100 for cat (64 x 64 pixels)"' in page
    assert 'alt="image of step 300 for cat (64 x 64 pixels)"' in page
    assert "Images while training" not in build_training(tmp_path / "other", [])


def test_when_how_long_and_on_what_it_ran(tmp_path: Path) -> None:
    save_rows(
        tmp_path / "run/logs/starts.jsonl",
        [
            {"time": f"2026-05-04T{time}+00:00", "first_step": step, "device": "H100", "processes": count, "torch": "2"}
            for time, step, count in (("10:20:30", 1, 8), ("12:00:00", 41, 4))
        ],
    )
    page = build_training(tmp_path, [{"step": step, "loss": 1.0, "seconds": 60.0} for step in range(1, 121)])
    said = "Trained from 2026-05-04 10:20 UTC, on 8 x H100, then 4 x H100, in 2.0 h of steps, going on at step 41."
    assert said in visible(page)


def test_thumbnails_of_a_page_have_few_bytes_together(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(noise).save(tmp_path / "images/a b.png")
    for count, side in ((1, 448), (20_000, 16)):
        entry = Thumbnails(tmp_path / "page", count).entry(tmp_path / "images/a b.png", "x", "y")
        kind, data = entry["uri"].removeprefix("data:image/").split(";base64,")
        assert kind == "webp" and len(data) * 3 / 4 <= max(BYTES_OF_ALL / count, 600)
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert side <= max(image.size) <= max(side, 64)
        assert (entry["width"], entry["height"], entry["full"]) == (320, 448, "../images/a%20b.png")
        assert entry["alt"] == "y (500 x 700 pixels)"
