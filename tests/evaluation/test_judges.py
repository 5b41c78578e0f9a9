"""Judges: asked of a running endpoint that answers well, or misbehaves in all the ways that endpoints do."""

import base64
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.judge_server import Handler, judge_server
from helpers.pictures import scene
from omnitune.config import Benchmark
from omnitune.config.base import check_config
from omnitune.config.benchmarks.judge import Judge
from omnitune.errors import ConfigError
from omnitune.evaluation.judges.judgements import agreement, judge_images, judged_measures, read_judgements, summed_up
from omnitune.evaluation.judges.prompt import read_answer
from omnitune.evaluation.prompts import Prompt
from omnitune.io.files import sha256_of

pytestmark = pytest.mark.unit

KEY = "sk-very-secret"


class Place:
    """An evaluation of some images, and a judge of them."""

    def __init__(self, root: Path, number: int = 3) -> None:
        self.root, self.output, self.answers = root, root / "run/judgements/j.jsonl", root / "answers"
        (root / "run/images").mkdir(parents=True)
        scene((200, 100), seed=9).save(root / "in.png")
        self.prompts, self.rows = [], []
        for index in range(number):
            path = root / f"run/images/k{index}.png"
            scene((120, 80), seed=index).save(path)
            inputs = {"task_type": "edit", "input_images": (root / "in.png",)} if index == 1 else {"task_type": "t2i"}
            self.prompts.append(Prompt(f"k{index}", instruction=f"draw {index}", **inputs))
            self.rows.append({"key": f"k{index}", "image": f"images/k{index}.png", "sha256": sha256_of(path)})

    def judge(self, url: str, **settings: Any) -> Judge:
        defaults = {"name": "j", "base_url": url, "model": "m", "timeout": 5, "retries": 2, "max_side": 64}
        return check_config({**defaults, **settings}, Judge, "b.yml")

    def ask(self, judge: Judge) -> list[dict[str, Any]]:
        folder = self.root / "run"
        judge_images(judge, self.prompts, self.rows, folder, self.output, self.answers, pause=0.01)
        return read_judgements(judge, self.output, self.rows)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def text_of(body: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")


def test_images_are_scored_once_and_answers_kept(place: Place) -> None:
    with judge_server(lambda handler, body, number: handler.score(7 if "draw 1" in text_of(body) else 4, 9)) as server:
        judge = place.judge(server.url, repeats=2)
        lines = place.ask(judge)
        assert [judged_measures(judge, line) for line in lines] == [
            {"judge_j_instruction": wanted, "judge_j_quality": 9.0} for wanted in (4.0, 7.0, 4.0)
        ]
        assert len(server.requests) == 6
        first = place.output.read_bytes()
        place.output.unlink()
        place.ask(place.judge("http://127.0.0.1:1/v1", repeats=2))
        assert place.output.read_bytes() == first, "a rerun asks nothing, wherever the endpoint is now"
        assert len(server.requests) == 6
        place.ask(place.judge(server.url, repeats=3))
        assert len(server.requests) == 9, "one more repetition of each"
        for changes in ({"model": "other"}, {"parameters": {"temperature": 1}}, {"max_side": 65}):
            before = len(server.requests)
            place.ask(place.judge(server.url, **changes))
            assert len(server.requests) == before + 3, changes
        place.rows[0]["sha256"] = "another image"
        place.ask(place.judge(server.url))
        assert len(server.requests) == 9 + 9 + 1, "a new image alone"


def test_what_is_sent(place: Place) -> None:
    """Model, parameters, both pictures of an edit, reduced; no key where none is named."""
    with judge_server(lambda handler, body, number: handler.score(1, 2)) as server:
        place.ask(place.judge(server.url, parameters={"seed": 5}))
    [(path, headers, body)] = [found for found in server.requests if "draw 1" in text_of(found[2])]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["seed"]) == ("m", 5)
    assert "temperature" not in body
    urls = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) for url in urls]
    assert [image.size for image in images] == [(64, 32), (64, 43)], "input, then result"


def test_no_more_at_a_time_than_allowed_and_no_faster(place: Place) -> None:
    def slowly(handler: Handler, body: Any, number: int) -> None:
        time.sleep(0.05)
        handler.score(1, 1)

    with judge_server(slowly) as server:
        place.ask(place.judge(server.url, repeats=4, concurrency=3))
        assert 2 <= server.most <= 3
    started = time.monotonic()
    with judge_server(lambda handler, body, number: handler.score(1, 1)) as server:
        place.ask(place.judge(server.url, rate=1200, model="other"))
        assert len(server.requests) == 3
    assert time.monotonic() - started >= 2 * 60 / 1200


def drip(handler: Handler, body: Any, number: int) -> None:
    """A byte now and then: no single wait is long, all together are."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def cut(handler: Handler, body: Any, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "{\\"instruction\\": 9')


GOOD = '{"instruction": 5, "quality": 5}'
BAD: dict[str, tuple[Callable[[Handler, Any, int], None], str, int]] = {
    # what the server does, the reason that is noted, and how often it is asked
    "refusal": (lambda handler, body, number: handler.say(None, refusal="I may not"), "refused", 1),
    "filter": (lambda handler, body, number: handler.say("", "content_filter"), "refused", 1),
    "words": (lambda handler, body, number: handler.say("I cannot judge this."), "the answer holds no scores", 3),
    "beyond": (
        lambda handler, body, number: handler.say('{"instruction": 11, "quality": 5}'),
        "the answer holds no scores",
        3,
    ),
    "half": (lambda handler, body, number: handler.say('{"instruction": 5, "qual'), "the answer holds no scores", 3),
    "length": (lambda handler, body, number: handler.say(GOOD, "length"), "the answer was cut off (max_tokens)", 1),
    "html": (lambda handler, body, number: handler.send("<html>"), "the response is not JSON", 3),
    "other": (lambda handler, body, number: handler.send({"choices": []}), "the response is no chat completion", 3),
    "list": (lambda handler, body, number: handler.send([1]), "the response is no chat completion", 3),
    "many": (lambda handler, body, number: handler.send({}, 429, Retry_After="0.01"), "status 429", 3),
    "error": (lambda handler, body, number: handler.send("oops", 500), "status 500", 3),
    "bad": (lambda handler, body, number: handler.send("bad", 400), "status 400", 1),
    "elsewhere": (lambda handler, body, number: handler.send("", 302, Location="http://127.0.0.1:1/"), "status 302", 1),
    "long": (
        lambda handler, body, number: handler.send("x" * 2_000_000),
        "the response has more than 1048576 bytes",
        1,
    ),
    "slow": (drip, "no answer within 0.3 seconds", 3),
    "cut": (cut, "the connection broke (RemoteProtocolError)", 3),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_what_misbehaves_is_missing_and_never_a_score(
    place: Place, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For one image of three; the others have their scores, and what is missing is asked for again by the next run."""
    misbehave, reason, times = BAD[kind]
    seen: list[int] = []

    def answer(handler: Handler, body: Any, number: int) -> None:
        if "draw 2" in text_of(body):
            seen.append(number)
            misbehave(handler, body, number)
        else:
            handler.score(5, 6)

    with judge_server(answer) as server:
        judge = place.judge(server.url, timeout=0.3 if kind == "slow" else 5)
        lines = place.ask(judge)
        assert [line["missing"] for line in lines] == [[], [], [reason]]
        assert judged_measures(judge, lines[2]) == {}
        assert len(seen) == times
        assert summed_up(judge, lines)["missing"] == {reason: 1}
        assert "1 of 3 answers are missing. To ask for them again: snakemake" in caplog.text
        server.answering = lambda handler, body, number: handler.score(1, 1)
        before = len(server.requests)
        assert not place.ask(judge)[2]["missing"]
        assert len(server.requests) == before + 1


def test_another_try_brings_an_answer(place: Place) -> None:
    def answer(handler: Handler, body: Any, number: int) -> None:
        if number == 1:
            handler.send("", 503)
        elif number == 2:
            handler.say("hm")
        else:
            handler.score(8, 8)

    with judge_server(answer) as server:
        assert not any(line["missing"] for line in place.ask(place.judge(server.url)))
        assert len(server.requests) == 5


def test_an_endpoint_that_stops_answering_is_left_alone(tmp_path: Path) -> None:
    place = Place(tmp_path, number=30)
    with judge_server(
        lambda handler, body, number: handler.score(1, 1) if number == 1 else handler.send("", 500)
    ) as server:
        lines = place.ask(place.judge(server.url, concurrency=1, retries=0))
        assert len(server.requests) == 11
    assert [line["missing"] for line in lines[-1:]] == [["not asked: the endpoint had stopped answering"]]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_endpoint_that_refuses_all_is_not_asked_on(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """All are missing, and counted; one that is refused among others costs itself alone."""
    place = Place(tmp_path, number=8)
    with judge_server(lambda handler, body, number: handler.send("no such model", status)) as server:
        judge = place.judge(server.url, concurrency=1)
        lines = place.ask(judge)
        assert len(server.requests) == 3
        reasons = {f"status {status}": 3, "not asked: the endpoint had refused others like it": 5}
        assert summed_up(judge, lines)["missing"] == reasons
        assert caplog.text.count(f"answers {status} (no such model): no more is asked. Check model") == 1
        assert "8 of 8 answers are missing" in caplog.text
        server.answering = lambda handler, body, number: (
            handler.send("too large", status) if number % 2 else handler.score(1, 1)
        )
        place.ask(judge)
        assert len(server.requests) == 3 + 8
        server.answering = lambda handler, body, number: handler.send("too large", status)
        place.ask(judge)
        assert len(server.requests) == 3 + 8 + 4, "what is kept says that the endpoint takes such requests"


def test_quick_refusals_do_not_speak_for_answers_on_their_way(tmp_path: Path) -> None:
    place = Place(tmp_path, number=12)

    def answer(handler: Handler, body: Any, number: int) -> None:
        if number in {1, 5, 6}:
            time.sleep(0.3)
            handler.score(1, 1)
        else:
            handler.send("too large", 413)

    with judge_server(answer) as server:
        lines = place.ask(place.judge(server.url, concurrency=4))
        assert len(server.requests) == 12
    assert sum(bool(line["answers"]) for line in lines) == 3


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with judge_server(lambda handler, body, number: handler.score(1, 1)) as server:
        judge = place.judge(server.url, api_key_env="JUDGE_KEY")
        with pytest.raises(
            ValueError, match=r"judge 'j': the environment variable JUDGE_KEY is not set; export the key\."
        ):
            place.ask(judge)
        monkeypatch.setenv("JUDGE_KEY", KEY)
        place.ask(judge)
        assert {headers["Authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
        server.answering = lambda handler, body, number: handler.send(f"wrong key {KEY}", 401)
        with pytest.raises(
            ValueError, match=r"answers 401 \(wrong key \*\*\*\)\. Check base_url, model and the key in JUDGE_"
        ):
            place.ask(place.judge(server.url, api_key_env="JUDGE_KEY", model="other"))
    monkeypatch.delenv("JUDGE_KEY")
    place.ask(judge)  # all answers are kept, so that no key is needed
    written = [path.read_text(errors="replace") for path in place.root.rglob("*.json*")]
    assert len(written) == 4 and not any(KEY in text for text in (*written, caplog.text))


def test_an_endpoint_that_is_not_there_is_a_mistake(place: Place) -> None:
    with pytest.raises(
        ValueError, match=r"judge 'j': http://127\.0\.0\.1:1/v1/chat/completions cannot be reached .*Start the"
    ):
        place.ask(place.judge("http://127.0.0.1:1/v1"))
    assert not place.output.exists()


def test_a_killed_run_goes_on_where_it_was(place: Place) -> None:
    def dying(handler: Handler, body: Any, number: int) -> None:
        handler.score(3, 3) if number < 3 else handler.send("", 404)

    with judge_server(dying) as server:
        judge = place.judge(server.url, concurrency=1)
        with pytest.raises(ValueError, match="answers 404"):
            place.ask(judge)
        server.answering = lambda handler, body, number: handler.score(4, 4)
        lines = place.ask(judge)
        assert [line["answers"][0]["quality"] for line in lines] == [3, 3, 4]
        assert len(server.requests) == 4
    [damaged, *_] = place.answers.iterdir()
    damaged.write_text('{"instruction": 9')
    with judge_server(lambda handler, body, number: handler.score(6, 6)) as server:
        place.ask(place.judge(server.url))
        assert len(server.requests) == 1, "a damaged answer is none"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (GOOD, (5, 5)),
        (f"```json\n{GOOD}\n```", (5, 5)),
        (f'<think>like {{"instruction": 1, "quality": 1}}?</think> My scores: {GOOD}. Bye {{', (5, 5)),
        ('{"scores": {"instruction": 5, "quality": 5.0}, "reason": 3}', (5, 5)),
        ('{"instruction": 0, "quality": 10, "reason": "x", "confidence": 1}', (0, 10)),
        ('{"instruction": "5", "quality": 5}', None),
        ('{"instruction": true, "quality": 5}', None),
        ('{"instruction": -1, "quality": 5}', None),
        ('{"instruction": NaN, "quality": 5}', None),
        ('{"quality": 5}', None),
        ("{" * 20_000, None),
        ("5 and 5", None),
        ("", None),
    ],
)
def test_answers_are_read_from_what_stands_around_them(text: str, wanted: tuple[float, float] | None) -> None:
    found = read_answer(text)
    assert (found and (found.instruction, found.quality)) == wanted


def test_repeats_give_the_spread_and_labels_the_agreement(place: Place) -> None:
    scores = {"draw 0": [2, 4], "draw 1": [6, 6], "draw 2": [9, 9]}

    def answer(handler: Handler, body: Any, number: int) -> None:
        key = next(key for key in scores if key in text_of(body))
        handler.score(scores[key].pop(), 5)

    labels = place.root / "labels.jsonl"
    people = [{"image": f"run/images/k{n}.png", "instruction": value} for n, value in enumerate((1, 3, 2))]
    labels.write_text("".join(json.dumps(row) + "\n" for row in people))
    with judge_server(answer) as server:
        judge = place.judge(server.url, repeats=2, labels=str(labels))
        found = summed_up(judge, place.ask(judge))
    assert found["spread"] == {"instruction": pytest.approx(2**0.5 / 3, abs=1e-5), "quality": 0.0}
    assert found["agreement"]["instruction"] == {
        "n": 3,
        "kendall": pytest.approx(1 / 3),
        "pairs": 3,
        "accuracy": 0.666667,
    }
    assert found["agreement"]["quality"] == {"n": 0, "kendall": None, "pairs": 0, "accuracy": None}
    labels.write_text('{"image": "none.png"}\n')
    with pytest.raises(ValueError, match=r"labels\.jsonl:1: image: 'none\.png' does not exist"):
        summed_up(judge, read_judgements(judge, place.output, place.rows))


def test_agreement_counts_pairs_that_people_tell_apart() -> None:
    assert agreement([5, 5, 5], [1, 2, 3]) == {"n": 3, "kendall": None, "pairs": 3, "accuracy": 0.5}
    assert agreement([1, 2, 2, 4], [1, 2, 3, 3]) == {"n": 4, "kendall": pytest.approx(0.8), "pairs": 5, "accuracy": 0.9}


def test_judgements_of_something_else_are_refused(place: Place) -> None:
    with judge_server(lambda handler, body, number: handler.score(1, 1)) as server:
        judge = place.judge(server.url)
        place.ask(judge)
    with pytest.raises(
        ValueError, match=r"j\.jsonl: was changed, or judged under other settings of 'j'\. Judge again: snakem"
    ):
        read_judgements(place.judge(server.url, model="other"), place.output, place.rows)
    rows = [place.rows[0], {**place.rows[1], "sha256": "new"}]
    with pytest.raises(ValueError, match=r"no judgement of the image images/k1\.png"):
        read_judgements(judge, place.output, rows)
    place.output.write_text(place.output.read_text().replace('"quality":1', '"quality":9', 1))
    with pytest.raises(ValueError, match="was changed"):
        read_judgements(judge, place.output, place.rows)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"base_url": "ftp://x/v1"}, r"judges\.0\.base_url: .*needs a URL"),
        ({"base_url": "http://u:sk-1@x/v1"}, r"judges\.0\.base_url: .*takes no credentials"),
        ({"base_url": "http://x/v1?key=sk-1"}, r"judges\.0\.base_url: .*takes no credentials"),
        ({"name": "../x"}, r"judges\.0\.name: '\.\./x' is not allowed"),
        ({"parameters": {"model": "x"}}, r"model are set by the workflow"),
        ({"api_key": "sk-1"}, r"judges\.0\.api_key: unknown key. Did you mean 'api_key_env'"),
        ({"repeats": 0}, r"judges\.0\.repeats: 0 is not allowed"),
    ],
)
def test_wrong_judges_are_named(judge: dict[str, Any], message: str) -> None:
    good = {"name": "j", "base_url": "http://x/v1", "model": "m"}
    with pytest.raises(ConfigError, match=message) as error:
        check_config({"prompts": "p.jsonl", "judges": [{**good, **judge}]}, Benchmark, "b.yml")
    assert "sk-1" not in str(error.value), "a key is not repeated"
