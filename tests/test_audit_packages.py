"""The audit of pinned packages: a finding fails, a service that does not answer is said in a line."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from audit_packages import audit

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ADVISORY = {
    "id": "TEST-1",
    "summary": "a weakness",
    "affected": [
        {
            "package": {"name": "weak", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
        }
    ],
}


class Service(BaseHTTPRequestHandler):
    """Knows one weakness."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"vulns": [ADVISORY]} if asked["package"]["name"] == "weak" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield arguments(server.server_port)
    server.shutdown()


def arguments(port: int) -> list[str]:
    return ["--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{port}/v1/query"]


def test_a_known_weakness_fails(service: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("sound==1.0\n")
    assert audit(str(lock), service) == 0 and capsys.readouterr().out == ""
    lock.write_text("sound==1.0\nweak==1.0\n")
    assert audit(str(lock), service) == 1
    assert capsys.readouterr().out == "weak 1.0: TEST-1, mended in 2.0\n"


def test_without_a_service_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "requirements.lock").write_text("weak==1.0\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert audit(str(tmp_path / "requirements.lock"), arguments(port), seconds=4) == 0
        assert capsys.readouterr().out == "not audited: the advisory service has not answered within 4 seconds\n"
    assert audit(str(tmp_path / "requirements.lock"), arguments(port)) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("not audited: ") and "127.0.0.1" in line
