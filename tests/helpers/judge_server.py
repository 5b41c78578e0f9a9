"""A judge's endpoint on this machine, which answers well or misbehaves as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answering = Callable[["Handler", dict[str, Any], int], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the server's function; notes each request."""

    server: "JudgeServer"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.requests.append((self.path, dict(self.headers), body))
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
            number = len(self.server.requests)
        try:
            self.server.answering(self, body, number)
        except (BrokenPipeError, ConnectionResetError):  # the other side has waited long enough
            pass
        finally:
            with self.server.guard:
                self.server.running -= 1

    def send(self, body: Any, status: int = 200, **headers: str) -> None:
        """A response; text is sent as it is, all else as JSON."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def say(self, text: str | None, finish: str = "stop", **message: Any) -> None:
        """A chat completion."""
        self.send(
            {"choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}]}
        )

    def score(self, instruction: float, quality: float) -> None:
        """A good answer."""
        self.say(json.dumps({"reason": "so", "instruction": instruction, "quality": quality}))

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


class JudgeServer(ThreadingHTTPServer):
    """Attributes: requests (path, headers, body of each), most: how many there were at a time."""

    daemon_threads = True

    def __init__(self, answering: Answering) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answering, self.guard = answering, threading.Lock()
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.running = self.most = 0

    @property
    def url(self) -> str:
        """What a benchmark names as base_url."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def judge_server(answering: Answering) -> Iterator[JudgeServer]:
    """A running endpoint."""
    with JudgeServer(answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
