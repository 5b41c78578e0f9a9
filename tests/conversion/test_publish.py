"""A folder is uploaded as it was converted, or not at all."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from helpers.conversions import adapters_of, lora_model, options_for, start_of, write_checkpoint
from helpers.projects import sha256, write
from omnitune.conversion.export import convert
from omnitune.conversion.publish import prepare_upload, upload

pytestmark = pytest.mark.unit

REPO = "me/stars"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("converted")
    write_checkpoint(adapters_of(lora_model()), root / "checkpoint-3", "bin")
    convert(options_for(lora=True, alpha=8), root / "checkpoint-3", root / "out", start_of(root))
    return root / "out"


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    """A copy, to spoil."""
    for path in converted.iterdir():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "out"


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the hub that an upload asks."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def answer(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self) -> None:
        hub: Any = self.server
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.seen.append((self.command, self.path, self.headers.get("Authorization")))
        content: Any = {"id": REPO, "sha": "0" * 40, "siblings": [], "private": hub.private}
        if hub.status != 200:
            content = {"error": "no"}
        elif self.path == "/api/repos/create":
            hub.created, content = json.loads(body), {"url": f"{hub.url}/{REPO}"}
            hub.private = hub.private if hub.exists else hub.created["visibility"] == "private"
        elif self.path.startswith("/api/validate-yaml"):
            content = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            content = {"files": [self.mode(one["path"]) for one in json.loads(body)["files"]]}
        elif self.path.endswith("/info/lfs/objects/batch"):
            places = {
                one["oid"]: {"upload": {"href": f"{hub.url}/put/{one['oid']}"}} for one in json.loads(body)["objects"]
            }
            objects = [{**one, "actions": places[one["oid"]]} for one in json.loads(body)["objects"]]
            content = {"transfer": "basic", "objects": objects}
        elif self.path.startswith("/put/"):
            hub.stored[self.path.removeprefix("/put/")] = body
        elif "/commit/" in self.path:
            hub.commit = [json.loads(line) for line in body.splitlines()]
            content = {"commitUrl": f"{hub.url}/{REPO}/commit/1", "commitOid": "1", "hookOutput": ""}
        self.answer(content, hub.status)

    def mode(self, path: str) -> dict[str, object]:
        return {"path": path, "uploadMode": "lfs" if path.endswith("tensors") else "regular", "shouldIgnore": False}

    do_GET = do_POST = do_PUT = do_HEAD = handle_request  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.seen, server.stored, server.status = f"http://127.0.0.1:{server.server_port}", [], {}, 200
    server.exists, server.private, server.commit = False, False, None
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_what_is_uploaded_is_what_was_converted(folder: Path, hub: Any) -> None:
    write(folder / ".snakemake_timestamp", "of this machine")
    what = prepare_upload(folder, REPO)
    assert hub.seen == [], "it asks nobody"
    names = {path.name for path in folder.iterdir()} - {".snakemake_timestamp"}
    assert what.files == {name: (folder / name).stat().st_size for name in names}
    assert what.card.startswith("---\nlicense: apache-2.0")
    assert upload(what, private=True) == f"{hub.url}/{REPO}/commit/1"
    assert (hub.created["name"], hub.created["organization"], hub.created["visibility"]) == ("stars", "me", "private")
    sent = {entry["value"]["path"]: entry["value"] for entry in hub.commit if entry["key"] in ("file", "lfsFile")}
    assert sent.keys() == names
    for name, value in sent.items():
        content = hub.stored[value["oid"]] if "oid" in value else base64.b64decode(value["content"])
        assert content == (folder / name).read_bytes(), name
    asked = {token for _, path, token in hub.seen if path.startswith(("/api/repos/", "/api/models/"))}
    assert asked == {"Bearer hf_secret"}


def test_without_a_token_or_a_right_nothing_is_uploaded(
    folder: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = prepare_upload(folder, REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"HF_TOKEN is not set: set it to a token that may write to me/stars"):
        upload(what, private=False)
    assert hub.seen == []
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    hub.status = 403
    with pytest.raises(ValueError, match=r"me/stars: could not be uploaded: .* Set HF_TOKEN") as error:
        upload(what, private=False)
    assert "hf_other" not in str(error.value)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"me/stars: could not be uploaded: .* Call again"):
        upload(what, private=False)


def test_what_is_to_be_private_goes_into_no_public_repository(folder: Path, hub: Any) -> None:
    what, hub.exists = prepare_upload(folder, REPO), True
    with pytest.raises(ValueError, match=r"me/stars: exists and is public, .* Nothing was uploaded"):
        upload(what, private=True)
    assert hub.commit is None and not hub.stored
    hub.private = True
    upload(what, private=True)
    assert hub.commit


@pytest.mark.parametrize("repo", ["stars", "a/b/c", "/", "me/..", "me/a b", "https://hub/me/stars"])
def test_a_name_that_no_repository_has_is_refused(folder: Path, repo: str) -> None:
    with pytest.raises(ValueError, match="is no name of a repository: needs owner/name"):
        prepare_upload(folder, repo)


def spoil(folder: Path, **changes: object) -> None:
    report = json.loads((folder / "conversion.json").read_text())
    write(folder / "conversion.json", json.dumps({**report, **changes}))


def test_a_folder_that_is_no_verified_conversion_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"out/nothing: has no conversion\.json: give a folder"):
        prepare_upload(folder / "nothing", REPO)
    spoil(folder, verified=[])
    with pytest.raises(ValueError, match=r"conversion\.json: says of no verification"):
        prepare_upload(folder, REPO)
    spoil(folder, verified=[{}], files={WEIGHTS: {"sha256": "0"}})
    with pytest.raises(ValueError, match=r"names no model card \(README\.md\)"):
        prepare_upload(folder, REPO)
    write(folder / "conversion.json", "{")
    with pytest.raises(ValueError, match=r"conversion\.json: cannot be read: it is no JSON"):
        prepare_upload(folder, REPO)


def test_files_that_are_others_are_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: is not what the conversion has written"):
        prepare_upload(folder, REPO)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: is missing, which conversion\.json names"):
        prepare_upload(folder, REPO)
    (folder / WEIGHTS).write_bytes(content)
    (folder / "diary.txt").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"diary\.txt: was not written by the conversion"):
        prepare_upload(folder, REPO)


def rewrite(folder: Path, name: str, text: str) -> None:
    """Another content of a file, as if the conversion had written it."""
    write(folder / name, text)
    report = json.loads((folder / "conversion.json").read_text())
    spoil(folder, files={**report["files"], name: {"sha256": sha256(text)}})


PRIVATE = [
    "/home/me/cats", "see (/mnt/disk/x)", "~/cats", "~me/cats", r"C:\cats", "C:/Users/me", r"\\server\share\x",
    "file:///a/b", "'/tmp/a'", "path:/private/var/x", "`/cluster/me`", "[a](/Volumes/My Disk/x)", "/nix/store/a",
    "https://site/a and /etc/x", "/home/m\u00e9/x", "//srv/models/x",
]  # fmt: skip
PUBLIC = [
    "https://site/home/x", "https://host:80/a//b/c", "s3://bucket/a/b", "hf://a/b/c", "and/or", "a / b / c", "3/4",
    "/4/5", "models/loras", "~50", "image/png", "./a/b, ../a/b", "**/a/b", "{x}/checkpoint/y", "</tools>/a", "/one",
    "<a/></b/c>", r"\d+/\w+/x", r"^/a/b", "layers.*.attn.*", r"'Q:\n'", "$HOME/a/b", "TCP/IP/UDP",
]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_a_text_that_names_paths_of_a_machine_is_refused(folder: Path, text: str) -> None:
    card = (folder / "README.md").read_text()
    rewrite(folder, "README.md", f"{card}\nTrained on {text}\n")
    line = len(card.splitlines()) + 2
    with pytest.raises(ValueError, match=rf"README\.md, line {line}: names .*, a path of this machine"):
        prepare_upload(folder, REPO)
    rewrite(folder, "README.md", card)
    rewrite(folder, "adapter_config.json", json.dumps({"a": [{"b": text}]}))
    with pytest.raises(ValueError, match=r"adapter_config\.json, a\.b: names .*, a path of this machine"):
        prepare_upload(folder, REPO)


def test_the_own_folder_is_found_whatever_stands_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (folder / "README.md").read_text()
    for home, text, found in (
        ("/me", "-I/me/x", True),
        ("/me", "<code>/me</code>", True),
        ("/me", "/means", False),
        ("/", "LoRA / DoRA", False),
    ):
        monkeypatch.setenv("HOME", home)
        rewrite(folder, "README.md", f"{card}\n{text}\n")
        with pytest.raises(ValueError, match="names /me, a path of this machine") if found else nullcontext():
            prepare_upload(folder, REPO)


def test_addresses_patterns_and_words_are_no_paths(folder: Path) -> None:
    rewrite(folder, "README.md", (folder / "README.md").read_text() + "\n" + "\n".join(PUBLIC))
    rewrite(folder, "adapter_config.json", json.dumps({"a": PUBLIC}))
    rewrite(folder, "tokenizer.json", json.dumps({"/usr/bin": 0}))
    prepare_upload(folder, REPO)
