"""Judges that run here: tiny models that are built on disk and asked for real."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.judge_models import build_knowing, build_random
from omnitune.config import Benchmark
from omnitune.config.base import check_config
from omnitune.config.benchmarks.judge import Judge
from omnitune.errors import ConfigError
from omnitune.evaluation.judges.judgements import judge_images, judged_measures, read_judgements, summed_up
from omnitune.evaluation.judges.local import load_judge
from omnitune.evaluation.judges.prompt import SYSTEM
from omnitune.evaluation.model_files import check_judge_models, fetch_judges, judge_folders
from omnitune.evaluation.prompts import Prompt
from omnitune.io.files import sha256_of

pytestmark = [pytest.mark.unit, pytest.mark.slow]

RED = '{"reason": "it is red", "instruction": 9, "quality": 8}'
BLUE = '{"reason": "it is blue", "instruction": 2, "quality": 7}'
COLOURS = ("red", "blue", "red")


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_knowing(tmp_path_factory.mktemp("knowing"), RED, BLUE)


class Place:
    """An evaluation of three plain images, the last of them an edit of a blue one."""

    def __init__(self, root: Path) -> None:
        self.root, self.output, self.answers = root, root / "run/judgements/j.jsonl", root / "answers"
        (root / "run/images").mkdir(parents=True)
        Image.new("RGB", (60, 50), "blue").save(root / "in.png")
        self.prompts, self.rows = [], []
        for number, colour in enumerate(COLOURS):
            path = root / f"run/images/k{number}.png"
            Image.new("RGB", (90, 70), colour).save(path)
            inputs = {"task_type": "edit", "input_images": (root / "in.png",)} if number == 2 else {"task_type": "t2i"}
            self.prompts.append(Prompt(f"k{number}", instruction=f"make it {colour}", **inputs))
            self.rows.append({"key": f"k{number}", "image": f"images/k{number}.png", "sha256": sha256_of(path)})

    def ask(self, judge: Judge) -> list[dict[str, Any]]:
        judge_images(judge, self.prompts, self.rows, self.root / "run", self.output, self.answers)
        return read_judgements(judge, self.output, self.rows)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def judge_of(folder: Path | str, **settings: Any) -> Judge:
    return check_config({"name": "j", "model": str(folder), "max_side": 64, **settings}, Judge, "b.yml")


def test_a_local_model_scores_what_it_sees(place: Place, knowing: Path) -> None:
    """Red and blue images have the scores that this model gives them; kept answers are not asked for again."""
    judge = judge_of(knowing)
    lines = place.ask(judge)
    assert [judged_measures(judge, line) for line in lines[:2]] == [
        {"judge_j_instruction": 9.0, "judge_j_quality": 8.0},
        {"judge_j_instruction": 2.0, "judge_j_quality": 7.0},
    ]
    assert lines[0]["answers"][0]["reason"] == "it is red"
    assert summed_up(judge, lines)["missing"] == {}
    first = place.output.read_bytes()
    hidden = knowing.rename(knowing.with_name("hidden"))
    place.ask(judge)
    hidden.rename(knowing)
    assert place.output.read_bytes() == first, "without the model, from the answers that are kept"
    place.ask(judge_of(knowing, max_side=65))
    assert len(list(place.answers.iterdir())) == 6


def test_the_inputs_of_an_edit_are_seen_too(place: Place, knowing: Path) -> None:
    """Two images reach the model: where both are blue the answer is sure, and red with blue input is nearer to it."""
    model = load_judge(judge_of(knowing))
    red, blue = (Image.new("RGB", (30, 30), colour) for colour in ("red", "blue"))

    def leaning(*images: Image.Image) -> float:
        inputs = model._inputs(["make it red", *images])
        text = model.processor.tokenizer.decode(inputs["input_ids"][0])
        assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>") and "make it red<|vision_start|>" in text
        assert int((inputs["input_ids"] == model.model.config.image_token_id).sum()) == 4 * len(images)
        logits = model.model(**inputs).logits[0, -1]
        number = model.processor.tokenizer.convert_tokens_to_ids
        return (logits[number(RED)] - logits[number(BLUE)]).item()

    assert leaning(blue, blue) < leaning(blue, red) < leaning(red, red)
    assert leaning(blue, blue) < leaning(blue) < 0 < leaning(red)


def test_what_is_no_answer_is_missing_with_its_reason(place: Place, tmp_path: Path) -> None:
    """A Qwen2.5-VL with random weights never ends; a model that ends with other words gives no scores."""
    judge = judge_of(build_random(tmp_path / "random"), parameters={"max_tokens": 8})
    lines = place.ask(judge)
    assert [line["missing"] for line in lines] == [["the answer was cut off (max_tokens)"]] * 3
    assert judged_measures(judge, lines[0]) == {} and not place.answers.exists()
    judge = judge_of(build_knowing(tmp_path / "chatty", "what a picture", '{"instruction": 11, "quality": 5}'))
    assert [line["missing"] for line in place.ask(judge)] == [["the answer holds no scores"]] * 3


def test_an_instruction_that_cannot_be_put_is_missing_alone(place: Place, knowing: Path) -> None:
    place.prompts[1] = Prompt("k1", task_type="t2i", instruction="a <|image_pad|> of a cat")
    lines = place.ask(judge_of(knowing))
    assert lines[0]["answers"] and lines[2]["answers"]
    [reason] = lines[1]["missing"]
    assert reason.startswith("the question cannot be put (")


def test_repeats_are_drawn_each_with_its_own_seed(place: Place, knowing: Path) -> None:
    """At a temperature that makes both answers of this model likely."""
    judge = judge_of(knowing, repeats=8, parameters={"temperature": 4.0, "max_tokens": 16})
    lines = place.ask(judge)
    assert {answer["instruction"] for answer in lines[0]["answers"]} == {2, 9}
    assert summed_up(judge, lines)["spread"]["instruction"] > 1
    shutil.rmtree(place.answers)
    assert place.ask(judge) == lines, "the same seeds"


def test_a_model_that_cannot_be_had_ends_the_job(place: Place, knowing: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judges\.j\.model: '\S+/none' does not exist"):
        place.ask(judge_of(tmp_path / "none"))
    shutil.copytree(knowing, tmp_path / "lacking")
    weights = load_file(tmp_path / "lacking/model.safetensors")
    del weights["language_model.lm_head.weight" if "language_model.lm_head.weight" in weights else "lm_head.weight"]
    save_file(weights, tmp_path / "lacking/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacking: its files lack 1 tensors of the model, such as lm_head\.weight"):
        place.ask(judge_of(tmp_path / "lacking"))
    shutil.copytree(knowing, tmp_path / "silent")
    (tmp_path / "silent/chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"silent' has no chat template\. Take a model for chats"):
        place.ask(judge_of(tmp_path / "silent"))
    content = json.loads((knowing / "config.json").read_text())
    shutil.copytree(knowing, tmp_path / "code")
    (tmp_path / "code/config.json").write_text(json.dumps({**content, "auto_map": {"AutoModel": "own.Own"}}))
    with pytest.raises(ValueError, match=r"judges\.j\.model: .*code/config\.json: auto_map"):
        place.ask(judge_of(tmp_path / "code"))
    assert not place.output.exists()


def test_folders_are_looked_at_before_any_job(knowing: Path, tmp_path: Path) -> None:
    def benchmark(model: Path | str) -> Benchmark:
        return Benchmark(prompts="p.jsonl", judges=[judge_of(model)])

    check_judge_models(benchmark(knowing))
    fetch_judges(benchmark(knowing))
    assert judge_folders(judge_of(knowing)) == [knowing]
    assert judge_folders(judge_of("a/b")) == []
    check_judge_models(benchmark("owner/on-the-hub"))
    with pytest.raises(ValueError, match=r"judges\.j\.model: '\./none' does not exist"):
        check_judge_models(benchmark("./none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"judges\.j\.model: '\S+empty' has no config\.json"):
        check_judge_models(benchmark(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"timeout": 5}, r"judges\.0\.timeout: is of an endpoint, and base_url is missing; take one out or name the"),
        ({"api_key_env": "KEY"}, r"judges\.0\.api_key_env: is of an endpoint"),
        ({"parameters": {"seed": 1}}, r"judges\.0\.parameters\.seed: 1 is not allowed: known without base_url: temp"),
        ({"parameters": {"max_tokens": 0}}, r"judges\.0\.parameters\.max_tokens: 0 is not allowed: Input should be"),
        ({"repeats": 2}, r"judges\.0\.repeats: with temperature 0 all answers are the same; raise it in parameters"),
    ],
)
def test_wrong_local_judges_are_named(judge: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config({"prompts": "p.jsonl", "judges": [{"name": "j", "model": "m", **judge}]}, Benchmark, "b.yml")


def test_answers_of_an_endpoint_and_of_here_are_not_each_others() -> None:
    here, there = judge_of("m"), judge_of("m", base_url="http://x/v1")
    assert here.asked == {**there.asked, "local": True}
    assert here.model_dump(exclude={"base_url"}) == there.model_dump(exclude={"base_url"})
