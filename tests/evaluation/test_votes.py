"""People's votes: a page that a browser's requests are made to, the file that they go to, and what it comes to."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image, PngImagePlugin

from helpers.runs import save_json, save_rows
from omnitune.errors import ConfigError
from omnitune.evaluation.votes.server import VoteServer, serve_votes
from omnitune.evaluation.votes.votes import Preference, pairs_of, preference, read_votes, undecided
from omnitune.io.files import sealed, sha256_of

pytestmark = pytest.mark.unit

ATTACK = '"><script>alert(1)</script><img src=x onerror="alert(2)">'
KEYS = ("a", "b", "c")
VOTES = Path("votes/bench.jsonl")


def evaluate(experiment: str, step: int, colours: str, protocol: str = "p") -> None:
    """An evaluation of three prompts, in the working directory."""
    folder, rows = Path(f"experiments/{experiment}/evaluation/{step}/bench"), []
    (folder / "images").mkdir(parents=True)
    for key, colour in zip(KEYS, colours, strict=True):
        path = folder / f"images/{key}.png"
        told = PngImagePlugin.PngInfo()
        told.add_text("model", experiment)
        Image.new("RGB", (8, 8), (int(colour) * 20, 0, 0)).save(path, pnginfo=told)
        rows.append({"key": key, "instruction": ATTACK, "image": f"images/{key}.png", "sha256": sha256_of(path)})
    save_rows(folder / "generations.jsonl", rows)
    scores = {"protocol": protocol, "generations_sha256": sha256_of(folder / "generations.jsonl")}
    save_json(folder / "scores.json", sealed(scores))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Experiments first (steps 0 and 20) and second (step 20)."""
    monkeypatch.chdir(tmp_path)
    evaluate("first", 0, "123")
    evaluate("first", 20, "456")
    evaluate("second", 20, "789")
    Image.new("RGB", (8, 8), "blue").save("in.jpg")
    return tmp_path


@contextmanager
def serving(**settings: int) -> Iterator[VoteServer]:
    """The page for `first` against `second`."""
    pairs = undecided(pairs_of("first", "second", "bench"), read_votes(VOTES))
    with VoteServer(pairs, {"a": (Path("in.jpg"),)}, VOTES, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: VoteServer, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str, bytes]:
    """Status, content security policy and body of a response; headers are a browser's, but for those that are given."""
    host = f"127.0.0.1:{server.server_address[1]}"
    connection = http.client.HTTPConnection(host, timeout=5)
    sent = {"Host": host, **({"Content-Type": "application/x-www-form-urlencoded"} if body else {})}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, sent)
    response = connection.getresponse()
    found = response.status, response.headers.get("Content-Security-Policy", ""), response.read()
    connection.close()
    return found


def vote(server: VoteServer, choice: str, **headers: str) -> int:
    """What a click on the page that is shown sends; gives the status."""
    page = ask(server, "GET", "/")[2].decode()
    match = re.search(r'name="pair" value="([^"]+)"', page)
    assert match
    return ask(server, "POST", "/vote", urlencode({"pair": match[1], "choice": choice}), **headers)[0]


def test_pairs_are_shown_in_turn_and_votes_written_as_they_come() -> None:
    with serving() as server:
        for number, choice in enumerate(("left", "tie", "right"), start=1):
            assert vote(server, choice, Origin=server.address.rstrip("/"), Sec_Fetch_Site="same-origin") == 303
            assert len(read_votes(VOTES)) == number
        assert "All 3 pairs are judged" in ask(server, "GET", "/")[2].decode()
    votes = read_votes(VOTES)
    assert sorted(found.key for found in votes) == list(KEYS)
    assert [found.choice for found in votes] == ["left", "tie", "right"]
    assert {side.experiment for found in votes for side in (found.left, found.right)} == {"first", "second"}
    assert not undecided(pairs_of("second", "first", "bench"), votes), "nor the other way round"


def test_the_page_does_not_say_whose_images_it_shows() -> None:
    """Neither in its text nor in names or content of images; text from prompts is text."""
    with serving() as server:
        shown = b""
        for _ in KEYS:
            status, policy, page = ask(server, "GET", "/")
            assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
            assert b"<script>alert" not in page and b"&quot;&gt;&lt;script&gt;alert(1)" in page
            images = re.findall(r'src="(/image/[^"]+)"', page.decode())
            assert len(images) in (2, 3)
            for name in images:
                status, _, data = ask(server, "GET", name)
                assert status == 200 and data.startswith(b"\x89PNG")
                shown += data
            shown += page
            vote(server, "tie")
    assert not any(word in shown for word in (b"first", b"second", b"experiments", b"bench"))


def test_sides_and_order_are_drawn() -> None:
    pairs = pairs_of("first", "second", "bench") * 20
    with VoteServer(pairs, {}, VOTES, seed=1) as server:
        lefts = [pair.sides[0].experiment for pair in server.pairs]
        assert 15 < lefts.count("first") < 45
        assert [pair.key for pair in server.pairs] != [pair.key for pair in pairs]
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80", "Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({}, 303),
    ],
)
def test_other_pages_cannot_vote(headers: dict[str, str], status: int) -> None:
    with serving() as server:
        assert vote(server, "left", **headers) == status
        assert len(read_votes(VOTES)) == (status == 303)
        if "Host" in headers:
            assert ask(server, "GET", "/", **headers)[0] == 403


def test_what_is_no_vote_is_none() -> None:
    with serving() as server:
        assert vote(server, "both") == 303
        assert ask(server, "POST", "/vote", urlencode({"pair": "guessed", "choice": "left"}))[0] == 303
        assert ask(server, "POST", "/vote", "pair=" + "x" * 5000)[0] == 413
        assert ask(server, "POST", "/other", "a=b")[0] == 404
        assert ask(server, "GET", "/image/../votes")[0] == 404
        assert ask(server, "DELETE", "/")[0] == 501
        assert not VOTES.exists()


def test_wrong_rows_are_named() -> None:
    with pytest.raises(
        ValueError, match="third: experiment 'third' has no scores of benchmark 'bench'; evaluate it first"
    ):
        pairs_of("first", "third", "bench")
    with pytest.raises(ValueError, match="first:5: step 5 was not evaluated on 'bench'; there are 0, 20"):
        pairs_of("first:5", "second", "bench")
    evaluate("other", 0, "123", protocol="q")
    with pytest.raises(ValueError, match="first and other: were drawn under different protocols of 'bench'"):
        pairs_of("first", "other", "bench")
    assert [pair.sides[0].step for pair in pairs_of("first:0", "first", "bench")] == ["0"] * 3
    Path("experiments/first/evaluation/20/bench/images/a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png: is not the image that was drawn"):
        pairs_of("first", "second", "bench")


def test_equal_images_are_not_asked_about_and_a_finished_comparison_serves_nothing() -> None:
    evaluate("same", 0, "483")
    assert [pair.key for pair in pairs_of("first:0", "same", "bench")] == ["a", "b", "c"]
    evaluate("equal", 0, "123")
    for key in KEYS:  # the same bytes
        source = Path(f"experiments/first/evaluation/0/bench/images/{key}.png")
        Path(f"experiments/equal/evaluation/0/bench/images/{key}.png").write_bytes(source.read_bytes())
    folder = Path("experiments/equal/evaluation/0/bench")
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    save_rows(folder / "generations.jsonl", [{**r, "sha256": sha256_of(folder / r["image"])} for r in rows])
    save_json(
        folder / "scores.json", sealed({"protocol": "p", "generations_sha256": sha256_of(folder / "generations.jsonl")})
    )
    assert pairs_of("first:0", "equal", "bench") == []
    said = serve_votes("first:0", "equal", "bench", {}, VOTES)
    assert said == "first:0 against equal on bench: no decided vote, 0 ties of 0 pairs."


def test_a_row_wins_whatever_its_side() -> None:
    pairs = pairs_of("first", "second", "bench")
    lines = []
    for pair, choice in ((pairs[0], "left"), (pairs[0].turned(), "right"), (pairs[1], "right"), (pairs[2], "tie")):
        sides = {"left": pair.sides[0].model_dump(), "right": pair.sides[1].model_dump()}
        lines.append({"time": "t", "key": pair.key, **sides, "choice": choice})
    save_rows(VOTES, lines)
    ours, theirs = ({pair.key: pair.sides[side].sha256 for pair in pairs} for side in (0, 1))
    found = preference(read_votes(VOTES), ours, theirs)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    mirrored = preference(read_votes(VOTES), theirs, ours)
    assert (mirrored.wins, mirrored.losses) == (1, 2)
    assert str(found) == "2 of 3 decided votes (67 %, 95 % interval 21 to 94 %), 1 tie"
    assert found.low == pytest.approx(0.2077, abs=1e-3) and mirrored.high == pytest.approx(1 - found.low)
    assert Preference.of([]) == Preference(0, 0, 0, None, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ('{"key": "a"}', "time: is required and missing"),
        ('{"choice": "both"}', "choice: 'both' is not"),
    ],
)
def test_a_line_that_is_no_vote_is_named(line: str, message: str) -> None:
    VOTES.parent.mkdir()
    VOTES.write_text(line + "\n")
    with pytest.raises((ValueError, ConfigError), match=rf"votes/bench\.jsonl:1: (.|\n)*{message}"):
        read_votes(VOTES)
