"""A page on this machine that shows two images of a prompt, without saying whose, and takes votes.

It is bound to 127.0.0.1, answers no other host name (so that no page elsewhere can be led to it), takes votes from its
own page alone, and names neither experiments nor files.
"""

import base64
import hashlib
import html
import io
import logging
import random
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs, urlsplit

from omnitune.evaluation.prompts import open_image
from omnitune.evaluation.votes.votes import Choice, Pair, append_vote, pairs_of, preference, read_votes, undecided

logger = logging.getLogger("omnitune")

LARGEST_POST = 4096  # bytes
CHOICES: tuple[Choice, ...] = get_args(Choice)
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.4 system-ui, sans-serif; }
body { margin: 1rem auto; max-width: 80rem; padding: 0 1rem; text-align: center; }
.instruction { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.1rem; }
.images { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; place-items: start center; }
.images img, .inputs img { max-width: 100%; max-height: 70vh; }
.inputs img { max-height: 20vh; }
button { font: inherit; padding: .6rem 1.2rem; margin: .5rem; }
"""
SCRIPT = """
const keys = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", "1": "left", "2": "right", "0": "tie"};
document.addEventListener("keydown", (event) => {
  const button = keys[event.key] && document.getElementById(keys[event.key]);
  if (button && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    button.click();
  }
});
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which is better?</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main>{content}</main>{script}</body></html>
"""
ASKED = """<h1>Which does better what was asked?</h1>
<p>{done} of {count}. Keys: left arrow, right arrow; down arrow for no difference.</p>
<p class="instruction">{instruction}</p>
{inputs}<div class="images"><img src="/image/{left}" alt="left image"><img src="/image/{right}" alt="right image"></div>
<form method="post" action="/vote"><input type="hidden" name="pair" value="{pair}">
<button id="left" name="choice" value="left">Left</button>
<button id="tie" name="choice" value="tie">No difference</button>
<button id="right" name="choice" value="right">Right</button></form>"""
FINISHED = "<h1>Thank you</h1><p>All {count} pairs are judged. This page can be closed.</p>"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; "
    f"style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class VoteServer(ThreadingHTTPServer):
    """Shows pairs one after the other; `serve_forever` ends once all are judged.

    Args:
        pairs: what to show, in random order and on random sides.
        inputs: images that came with a prompt, by its key.
        output: votes/{benchmark}.jsonl, to which votes are added.
        port: to listen at; 0 takes a free one.
        seed: of order and sides; None takes another each time.
    """

    daemon_threads = True

    def __init__(
        self,
        pairs: Sequence[Pair],
        inputs: Mapping[str, Sequence[Path]],
        output: Path,
        port: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        chance = random.Random(seed)
        self.pairs = [pair.turned() if chance.random() < 0.5 else pair for pair in chance.sample(pairs, len(pairs))]
        self.inputs, self.output, self.guard, self.done = inputs, output, threading.Lock(), 0
        # Names that say nothing and cannot be guessed: another page cannot vote on what it does not know.
        self.names = [secrets.token_urlsafe(16) for _ in self.pairs]
        self.images: dict[str, Path] = {}

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def show(self) -> str:
        """The page of the next pair, or the last page."""
        with self.guard:
            if self.done >= len(self.pairs):
                content = FINISHED.format(count=len(self.pairs))
                return PAGE.format(style=STYLE, content=content, script="")
            pair, name = self.pairs[self.done], self.names[self.done]
            left, right = (self._named(path) for path in pair.images)
            shown = "".join(
                f'<img src="/image/{self._named(path)}" alt="input image">' for path in self.inputs.get(pair.key, ())
            )
            content = ASKED.format(
                done=self.done,
                count=len(self.pairs),
                instruction=html.escape(pair.instruction),
                inputs=f'<div class="inputs">{shown}</div>\n' if shown else "",
                left=left,
                right=right,
                pair=name,
            )
            return PAGE.format(style=STYLE, content=content, script=f"<script>{SCRIPT}</script>")

    def vote(self, name: str, choice: str) -> bool:
        """Notes a vote on the pair that is shown; one on another, as of a page that was sent twice, is none."""
        found = next((known for known in CHOICES if known == choice), None)
        with self.guard:
            if found is None or self.done >= len(self.pairs):
                return False
            if not secrets.compare_digest(name.encode(), self.names[self.done].encode()):
                return False
            append_vote(self.output, self.pairs[self.done], found)
            self.done += 1
        return True

    def _named(self, path: Path) -> str:
        name = next((name for name, known in self.images.items() if known == path), None)
        if name is None:
            name = secrets.token_urlsafe(16)
            self.images[name] = path
        return name


def serve_votes(
    one: str, other: str, benchmark: str, inputs: Mapping[str, Sequence[Path]], output: Path, port: int = 0
) -> str:
    """Serves the page until all pairs of two rows are judged, or until Ctrl-C.

    Args:
        one, other: rows, as of `pairs_of`.
        benchmark: its name.
        inputs: images that came with a prompt, by its key.
        output: the file of votes; pairs that have one are not shown.
        port: to listen at; 0 takes a free one.

    Returns:
        A sentence on the outcome so far.
    """
    pairs = pairs_of(one, other, benchmark)
    left = undecided(pairs, read_votes(output))
    if left:
        try:
            server = VoteServer(left, inputs, output, port)
        except OSError as error:
            raise ValueError(f"--port: {port} cannot be used ({error.strerror}). Name another, or 0.") from None
        with server:
            logger.info("%d pairs to judge: open %s (Ctrl-C to stop; votes are kept)", len(left), server.address)
            with suppress(KeyboardInterrupt):
                server.serve_forever(poll_interval=0.1)
    ours, theirs = ({pair.key: pair.sides[number].sha256 for pair in pairs} for number in (0, 1))
    found = preference(read_votes(output), ours, theirs)
    return f"{one} against {other} on {benchmark}: {found} of {len(pairs)} pairs."


class _Handler(BaseHTTPRequestHandler):
    server: VoteServer
    timeout = 30
    server_version, sys_version = "omnitune", ""

    def do_GET(self) -> None:
        if not self._is_from_here():
            return
        if self.path == "/":
            self._send(self.server.show().encode(), "text/html; charset=utf-8")
            if self.server.done >= len(self.server.pairs):
                threading.Thread(target=self.server.shutdown, daemon=True).start()
            return
        image = self.server.images.get(self.path.removeprefix("/image/"))
        if image is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            buffer = io.BytesIO()  # written anew: what a file says of itself could tell whose it is
            open_image(image).save(buffer, "PNG")
            self._send(buffer.getvalue(), "image/png")

    def do_POST(self) -> None:
        if not self._is_from_here():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_POST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        fields = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"))
        pair, choice = (fields.get(name, [""])[0] for name in ("pair", "choice"))
        if self.path == "/vote":
            self.server.vote(pair, choice)
            self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, Location="/")
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _is_from_here(self) -> bool:
        """Whether the request names this page as its host, and as the page that it comes from, if it names one."""
        port = self.server.server_address[1]
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        foreign = origin is not None and origin not in {f"http://{host}" for host in hosts}
        foreign |= self.command == "POST" and site not in {None, "same-origin"}
        if self.headers.get("Host") not in hosts or foreign or urlsplit(self.path).netloc:
            self._refuse(HTTPStatus.FORBIDDEN)
            return False
        return True

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._send(status.phrase.encode(), "text/plain", status)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal for each image."""
