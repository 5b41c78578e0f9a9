"""Downloads that fail, from a running server: each says what to do."""

import errno
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from omnitune.models import OmniGen2Pipeline
from omnitune.pretrained.files import PATH_KEY, VAE_KEY
from omnitune.pretrained.hub import fetch_repository

pytestmark = pytest.mark.unit

# As the hub answers: status, and the code in its header.
ANSWERS = {
    "gated": (401, "GatedRepo"),
    "unknown": (401, "RepoNotFound"),
    "moved": (404, "RevisionNotFound"),
    "busy": (503, None),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        repository = next((name for name in ANSWERS if f"/owner/{name}/" in self.path), "busy")
        status, code = ANSWERS[repository]
        body = json.dumps({"error": "no"}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    server.shutdown()
    server.server_close()


def test_a_full_disk_is_no_fault_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("omnitune.io.model_files.hub.snapshot_download", full)
    with pytest.raises(ValueError, match=r"No space left on device\. `cache_dir` names a folder") as error:
        fetch_repository("owner/name", None, PATH_KEY, str(tmp_path), None)
    assert "network" not in str(error.value)


def test_a_pipeline_by_its_id_says_it_too(hub: None, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^pretrained_model_name_or_path: 'owner/unknown' \(revision newest\) could not be .*there is no such",
    ):
        OmniGen2Pipeline.from_pretrained("owner/unknown", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "token", "message"),
    [
        ("gated", VAE_KEY, None, rf"gated\. Accept its licence .*`hf auth login`\. Or leave {VAE_KEY} out"),
        ("gated", PATH_KEY, "hf_x", r"gated\. Accept its licence .* with the account of the token that is set\.$"),
        ("unknown", PATH_KEY, None, r"there is no such repository, or it is private"),
        ("moved", PATH_KEY, None, r"\(revision v2\) could not be fetched: it has no such revision"),
        ("busy", PATH_KEY, None, r"503 .*Check the network, try again later, or name a local folder\.$"),
    ],
)
def test_a_failed_download_says_what_to_do(
    hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, token: str | None, message: str
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=message) as error:
        fetch_repository(f"owner/{name}", "v2" if name == "moved" else None, key, str(tmp_path), None)
    assert str(error.value).startswith(f"{key}: 'owner/{name}' (revision ")
