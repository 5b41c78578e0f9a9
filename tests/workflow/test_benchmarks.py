"""A published benchmark in the graph: imported, drawn, scored, laid out for its scorer, each again where it must be."""

import json
import shutil

import pandas as pd
import pytest

from helpers.judge_models import build_knowing
from helpers.tiny import BENCHMARK
from helpers.workplace import Workplace

pytestmark = pytest.mark.workflow

ROW = {"tag": "counting", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
OTHER = "models/other"
OFFICIAL = "experiments/tiny/evaluation/12/mine/official/tiny-12"


def test_a_published_benchmark_runs_to_the_files_of_its_scorer(workplace: Workplace) -> None:
    root = workplace.root
    metadata = root / "metadata.jsonl"
    metadata.write_text(json.dumps(ROW) + "\n")
    shutil.copytree(root / "resources/pretrained/demo/transformer", root / OTHER)
    keys = {**BENCHMARK, "prompts": "metadata.jsonl", "format": "geneval", "export": "official", "check": None}
    keys["baselines"] = {"other": OTHER}
    (root / "config/benchmarks/mine.yml").write_text(json.dumps(keys))
    workplace.edit("config/config.yaml", lambda config: config["benchmarks"].append("config/benchmarks/mine.yml"))
    jobs = {"prepare_benchmark": 1, "generate_images": 3, "score_images": 3, "export_images": 3, "build_report": 1}
    assert {"import_prompts", "generate_images", "build_report"} <= workplace.planned().keys()
    assert workplace.ran() == {"import_prompts": 1, **jobs}
    assert {str(path.relative_to(root / OFFICIAL)) for path in (root / OFFICIAL).rglob("*") if path.is_file()} == {
        "00000/metadata.jsonl",
        "00000/samples/0000.png",
    }
    assert "Nothing to be done" in workplace.snakemake()
    metadata.write_text(json.dumps({**ROW, "include": []}) + "\n")
    assert workplace.ran() == {"import_prompts": 1, "prepare_benchmark": 1, "export_images": 3}
    assert json.loads((root / OFFICIAL / "00000/metadata.jsonl").read_text())["include"] == []
    rows = pd.read_csv(root / "experiments/tiny/report/generations.csv").query("benchmark == 'mine'").set_index("row")
    assert list(rows.index) == ["base", "other", "step 12"]
    assert rows.sha256["other"] == rows.sha256["base"] != rows.sha256["step 12"], "equal weights draw equal images"
    (root / OTHER / "config.json").unlink()
    refused = workplace.snakemake(ok=False)
    assert "benchmark 'mine': baselines.other: models/other is neither a pipeline's folder" in refused
    workplace.edit("config/benchmarks/mine.yml", lambda content: content.pop("baselines"))
    metadata.write_text(json.dumps({"tag": "counting"}))
    refused = workplace.snakemake(ok=False)
    assert "benchmark 'mine': metadata.jsonl:1: prompt: needs a text, it is missing." in refused
    assert "Traceback" not in refused


def test_a_local_judge_scores_images_in_a_job_of_its_own(workplace: Workplace) -> None:
    """The report counts its answers; a model that is not there any more is an error before any job."""
    root = workplace.root
    answers = [json.dumps({"reason": "so", "instruction": score, "quality": 5}) for score in (9, 2)]
    build_knowing(root / "models/judge", *answers)
    judge = {"name": "here", "model": "models/judge"}
    workplace.edit("config/benchmarks/tiny.yml", lambda content: content.update(judges=[judge]))
    assert workplace.ran() == {"prepare_benchmark": 1, "run_judge": 2, "score_images": 2, "build_report": 1}
    scores = json.loads((root / "experiments/tiny/evaluation/12/tiny/scores.json").read_text())
    assert scores["judges"]["here"]["missing"] == {} and scores["judges"]["here"]["asked"] == scores["prompts"]
    assert {row["judge_here_instruction"] for row in scores["per_prompt"]} <= {2, 9}
    assert "Judge here (models/judge), base: 0 of" in (root / "experiments/tiny/report/index.html").read_text()
    (root / "models/judge/config.json").unlink()
    refused = workplace.snakemake("--force", "run_judge", ok=False)
    assert "benchmark 'tiny': judges.here.model: 'models/judge' has no config.json" in refused
    assert "Traceback" not in refused
