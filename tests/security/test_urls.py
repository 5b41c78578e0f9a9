"""Servers that a row or a mixture of a stranger's names: they send without end, or lead to where nobody should read."""

import gzip
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp.resolver
import huggingface_hub
import pytest
from PIL import Image

from omnitune.config.urls import UrlOptions
from omnitune.errors import ConfigError, Refused
from omnitune.images.inspect import inspect_image
from omnitune.images.prepare import ImageLimits
from omnitune.io import storage
from omnitune.io.url_limits import UrlLimits, fetching
from omnitune.sharding.shard import write_shard
from omnitune.validation.source import Checks, validate_source

pytestmark = pytest.mark.unit
HERE = ("127.0.0.0/8",)
LIMITS = UrlLimits(response_mb=1, row_mb=2, samples_mb=1, private_networks=HERE)
QUICK = UrlLimits(response_seconds=2, row_seconds=4, samples_seconds=2, private_networks=HERE)
BLOCK = b"\0" * (1 << 16)
BOMB = gzip.compress(bytes(50_000_000))


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    return file.getvalue()


class Server(BaseHTTPRequestHandler):
    """Answers by the path's first part."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        name, _, rest = self.path.strip("/").partition("/")
        try:
            getattr(self, f"answer_{name}")(rest)
        except (BrokenPipeError, ConnectionResetError):  # as it should be: nobody reads on
            self.server.seen.append("given up")  # type: ignore[attr-defined]

    do_HEAD = do_GET  # noqa: N815

    def start(self, status: int = 200, **headers: object) -> bool:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()
        return self.command == "GET"

    def answer_good(self, rest: str) -> None:
        if self.start(Content_Length=len(picture())):
            self.wfile.write(picture())

    def answer_large(self, rest: str) -> None:
        if self.start(Content_Length=400_000):
            self.wfile.write(bytes(400_000))

    def answer_silent(self, rest: str) -> None:
        """Its size is not told."""
        if self.start():
            self.wfile.write(picture())

    def answer_endless(self, rest: str) -> None:
        if self.start():
            while True:
                self.wfile.write(BLOCK)

    def answer_liar(self, rest: str) -> None:
        """Says that it is small, and is not."""
        if self.command == "HEAD":
            self.start(Content_Length=len(picture()))
        else:
            self.answer_endless(rest)

    def answer_huge(self, rest: str) -> None:
        if self.start(Content_Length=4 << 40):
            while True:
                self.wfile.write(BLOCK)

    def answer_drip(self, rest: str) -> None:
        if self.start(Content_Length=1000):
            for _ in range(1000):
                self.wfile.write(b"\0")
                time.sleep(0.05)

    def answer_headers(self, rest: str) -> None:
        """Never comes to the body."""
        self.send_response(200)
        for number in range(1000):
            self.send_header(f"X-{number}", "a")
            self.flush_headers()
            time.sleep(0.05)

    answer_api = answer_headers  # where a hub is asked for what it has

    def answer_bomb(self, rest: str) -> None:
        if self.start(Content_Length=len(BOMB), Content_Encoding="gzip"):
            self.wfile.write(BOMB)

    def answer_cut(self, rest: str) -> None:
        if self.start(Content_Length=1000):
            self.wfile.write(picture()[:20])

    def answer_to(self, rest: str) -> None:
        self.start(302, Location=unquote(rest), Content_Length=0)

    def answer_circle(self, rest: str) -> None:
        self.start(302, Location=self.path, Content_Length=0)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.seen = []  # type: ignore[attr-defined]
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def at(server: ThreadingHTTPServer) -> Callable[[str], str]:
    return lambda path: f"http://127.0.0.1:{server.server_port}/{path}"


def validated(folder: Path, *images: str, **checks: Any) -> list[Any]:
    """The reason of each image's row, None for an accepted one."""
    lines = [json.dumps({"task_type": "t2i", "instruction": "a", "output_image": image}) + "\n" for image in images]
    (folder / "a.jsonl").write_text("".join(lines))
    validate_source("a", [folder / "a.jsonl"], folder / "out", Checks(**{"urls": LIMITS, **checks}), progress=False)
    rejected = [json.loads(line) for line in (folder / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {line["line"]: line["reason"] for line in rejected}
    return [reasons.get(number + 1) for number in range(len(images))]


ATTACKS = {
    "endless/a.png": "too_many_bytes",
    "huge/a.png": "too_many_bytes",
    "drip/a.png": "too_slow",
    "headers/a.png": "too_slow",
    "bomb/a.png": "unreachable",
    "cut/a.png": "unreachable",
    "circle/a.png": "unreachable",
    "to/ftp://127.0.0.1/a.png": "unreachable",
    "to/http://a..b/a.png": "unreachable",
    "to/http://%5B%3A%3A1/a.png": "unreachable",
}


@pytest.mark.parametrize("path", ATTACKS)
def test_an_answer_that_breaks_the_limits_is_a_verdict_on_its_row(
    tmp_path: Path, at: Callable[[str], str], path: str
) -> None:
    began = time.monotonic()
    if ATTACKS[path] == "too_slow":
        assert validated(tmp_path, at(path), urls=QUICK) == ["too_slow"]
    else:
        assert validated(tmp_path, at("good/a.png"), at(path), at("silent/a.png")) == [None, ATTACKS[path], None]
    assert time.monotonic() - began < 30, "it would take 50 seconds, or go on for ever"


def test_no_more_is_read_than_was_said(tmp_path: Path, at: Callable[[str], str]) -> None:
    assert validated(tmp_path, at("liar/a.png")) == ["not_an_image"]


def test_the_limits_hold_for_a_header(tmp_path: Path, at: Callable[[str], str]) -> None:
    paths = ["good/a.png", "endless/a.png", "huge/a.png", "bomb/a.png"]
    reasons = validated(tmp_path, *map(at, paths), depth="header")
    assert reasons == [None, "too_many_bytes", "too_many_bytes", "unreachable"]
    assert validated(tmp_path, at("drip/a.png"), urls=QUICK, depth="header") == ["too_slow"]


def test_all_images_of_a_row_share_its_limits(at: Callable[[str], str]) -> None:
    with fetching(UrlLimits(response_mb=1, row_mb=1, private_networks=HERE)):
        for _ in range(2):
            assert len(storage.read_bytes(at("large/a.png"))) == 400_000
        with pytest.raises(Refused, match=r"data\.urls\.row_mb allows \(1 MB\)"):
            storage.read_bytes(at("large/a.png"))


def test_a_rows_time_is_over_whatever_each_answer_takes(at: Callable[[str], str]) -> None:
    limits = UrlLimits(response_seconds=60, row_seconds=1, private_networks=HERE)
    began = time.monotonic()
    with fetching(limits), pytest.raises(Refused, match=r"data\.urls\.row_seconds allows \(1 seconds\)"):
        storage.read_bytes(at("drip/a.png"))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("path", ["endless/a.jsonl", "huge/a.jsonl", "drip/a.jsonl", "bomb/a.jsonl"])
def test_samples_have_limits(tmp_path: Path, at: Callable[[str], str], path: str) -> None:
    with pytest.raises((ConfigError, ConnectionError)) as error:
        urls = QUICK if "drip" in path else LIMITS
        validate_source("a", [at(path)], tmp_path, Checks(urls=urls), progress=False)
    assert at(path) in str(error.value)
    assert "data.urls.samples_" in str(error.value) or "compressed" in str(error.value)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ addresses

PRIVATE = [
    "127.0.0.1", "0.0.0.0", "0x7f000001", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "10.0.0.1",
    "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with (
        fetching(UrlLimits(response_seconds=5)),
        pytest.raises(Refused, match=r"data\.urls\.private_networks") as error,
    ):
        storage.read_bytes(f"http://{host}:1/a.png")
    assert error.value.reason == "private_address"


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0"])
def test_other_spellings_of_addresses_are_no_hosts(host: str) -> None:
    with fetching(UrlLimits()), pytest.raises(ConnectionError, match="not a canonical IPv4 address"):
        storage.read_bytes(f"http://{host}:1/a.png")


def test_what_a_name_leads_to_is_looked_at(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it leads elsewhere the next time: the address that is looked at is the one connected to."""

    async def resolve(self: Any, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 4}]

    monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(aiohttp.resolver.AsyncResolver, "resolve", resolve)
    url = f"http://pictures.example:{server.server_port}/good/a.png"
    public = UrlLimits(private_networks=("10.0.0.0/8",))
    with fetching(public), pytest.raises(Refused, match="private_address"):
        inspect_image(url)
    assert server.seen == []  # type: ignore[attr-defined]
    with fetching(LIMITS):
        assert inspect_image(url).format == "PNG"


def test_a_redirect_leads_to_no_private_address(
    server: ThreadingHTTPServer, at: Callable[[str], str], tmp_path: Path
) -> None:
    own = UrlLimits(private_networks=("127.0.0.1",))
    for host in ("127.0.0.2", "169.254.169.254", "[::1]"):
        target = f"http://{host}:{server.server_port}/good/a.png"
        assert validated(tmp_path, at(f"to/{quote(target)}"), urls=own) == ["private_address"]
        [row] = map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())
        assert f"leads to {host.strip('[]')}, which is not public" in row["message"]
    assert not any(path.startswith("/good") for path in server.seen)  # type: ignore[attr-defined]


# ------------------------------------------------------------------ roots


def test_redirects_stay_below_the_root(tmp_path: Path, server: ThreadingHTTPServer, at: Callable[[str], str]) -> None:
    class Inside(Server):
        def do_GET(self) -> None:
            self.path = self.path.removeprefix("/mine")
            super().do_GET()

        do_HEAD = do_GET  # noqa: N815

    server.RequestHandlerClass = Inside
    outside, climbing = at("mine/to//good/a.png"), at("mine/to//mine/../good/a.png")
    inside = at("mine/to//mine/good/a.png")
    reasons = validated(tmp_path, at("mine/good/a.png"), inside, outside, climbing, image_root=at("mine"))
    assert reasons == [None, None, "outside_image_root", "outside_image_root"]
    assert validated(tmp_path, outside) == [None], "without a root, they lead to any host that may be read from"
    with pytest.raises(ConfigError, match=r"leads to .*/good/a\.png, which does not lie below"):
        validate_source(
            "a", [outside], tmp_path / "out", Checks(urls=LIMITS, source_roots=(at("mine"),)), progress=False
        )


def test_tars_are_made_under_the_same_limits(tmp_path: Path, at: Callable[[str], str]) -> None:
    """A server that was honest at validation may be another one now."""
    row = {"key": "a_00000001", "source": "a", "task_type": "t2i", "instruction": "a", "text_tokens": None}
    row |= {"input_images": [], "bytes": [len(picture())], "sha256": [None]}
    manifest, index = tmp_path / "a-00000.jsonl", tmp_path / "a-00000.parquet"

    def write(path: str, urls: UrlLimits, root: str | None = None) -> int:
        manifest.write_text(json.dumps({**row, "output_image": at(path)}) + "\n")
        return write_shard(manifest, index.with_suffix(".tar"), index, ImageLimits(4096, 4096, 64), urls, root)

    for path, urls, root, message in [
        ("good/a.png", UrlLimits(), None, "is not public"),
        ("endless/a.png", LIMITS, None, "response_mb"),
        ("drip/a.png", QUICK, None, "response_seconds"),
        ("to//good/a.png", LIMITS, at("to"), "does not lie below"),
    ]:
        with pytest.raises(ValueError, match=f"a_00000001 .*{message}.*Validate again"):
            write(path, urls, root)
        assert not index.exists()
    assert write("good/a.png", LIMITS) == 1


def test_the_networks_of_a_config_are_checked() -> None:
    assert UrlOptions(private_networks=["10.1.0.0/16", "::1"]).limits.private_networks == ("10.1.0.0/16", "::1")
    with pytest.raises(ValueError, match=r"files\.lab"):
        UrlOptions(private_networks=["files.lab"])
    assert UrlOptions().limits == UrlLimits()


def test_a_hub_that_does_not_answer_is_too_slow(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library cannot be interrupted."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    started = time.monotonic()
    for read in (storage.read_bytes, storage.version_of, lambda url: storage.copy(url, tmp_path / "copy")):
        with fetching(QUICK, whole="samples"), pytest.raises(Refused, match=r"data\.urls\.samples_seconds allows"):
            read("hf://datasets/somebody/things/a.jsonl")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    assert time.monotonic() - started < 20
    assert any(path.startswith("/api/") for path in server.seen)  # type: ignore[attr-defined]
