"""Files by URL, against a running S3-compatible service."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omnitune.io import storage

pytestmark = pytest.mark.unit


def write(place: str | Path, content: bytes) -> None:
    with storage.atomic_file(place) as temporary:
        temporary.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1024, 60_000_000])  # the last one is uploaded in several parts
def test_what_was_written_is_read(s3: str, size: int) -> None:
    url, content = f"{s3}/storage/{size}.bin", bytes(range(256)) * (size // 256)
    write(url, content)
    assert storage.read_bytes(url) == content
    assert storage.size_of(url) == len(content)
    assert storage.read_range(url, 100, 50) == content[100:150]
    assert storage.read_range(url, len(content) - 5, 50) == content[-5:]
    with storage.open_file(url) as stream:
        assert stream.read(10) == content[:10]


def test_a_new_content_has_a_new_version(s3: str) -> None:
    url = f"{s3}/storage/version.bin"
    versions = []
    for content in (b"one", b"one", b"two"):
        write(url, content)
        versions.append(storage.version_of(url))
    assert versions[0] == versions[1] != versions[2]


def test_a_write_that_fails_leaves_what_was_there(s3: str, tmp_path: Path) -> None:
    for place in (f"{s3}/storage/kept.bin", tmp_path / "kept.bin"):
        write(place, b"old")
        with pytest.raises(RuntimeError, match="halfway"), storage.atomic_file(place) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("halfway")
        assert storage.read_bytes(place) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.bin"]


@pytest.mark.parametrize("place", ["omnitune-tests/storage/nothing", "no-such-bucket/a.bin"])
def test_what_is_missing_is_named(s3: str, place: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"s3://{place}: not found"):
        storage.read_bytes(f"s3://{place}")
    with pytest.raises(FileNotFoundError, match=f"s3://{place}: not found"):
        storage.size_of(f"s3://{place}")


def test_a_missing_bucket_is_named_on_writing(s3: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/a\.bin: not found .*bucket does not exist"):
        write("s3://no-such-bucket/a.bin", b"x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://a/b", "nonsense://a/b: cannot be opened: Protocol not known: nonsense"),
        ("file:///tmp/a", "file:///tmp/a: write a local file as a plain path"),
        ("s3://user:hunter2@host/a", "s3://host/a: stands with credentials; put them into the environment"),
    ],
)
def test_urls_that_cannot_be_used_are_errors(url: str, message: str) -> None:
    for use in (storage.read_bytes, storage.size_of, lambda place: write(place, b"x")):
        with pytest.raises(ValueError, match=message) as error:
            use(url)
        assert "hunter2" not in str(error.value)


@pytest.mark.slow
def test_a_missing_package_is_named(s3: str) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"  # as where it is not installed
        f"from omnitune.io import storage; storage.read_bytes('{s3}/a')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 's3:// needs a further package: pip install "omnitune[s3]"' in done.stderr


def test_missing_credentials_are_one_message(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match=r"no credentials were found.*AWS_ACCESS_KEY_ID") as error:
        storage.read_bytes(f"{s3}/a")
    assert "test-secret" not in str(error.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_service_that_does_not_answer_is_named(s3: str) -> None:
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:1/a: .*[Cc]onnect"):
        storage.read_bytes("http://127.0.0.1:1/a")


def test_places_are_joined() -> None:
    assert storage.join("s3://bucket/folder/", "a.tar") == "s3://bucket/folder/a.tar"
    assert storage.join("folder", "a.tar") == "folder/a.tar"
    assert storage.join("folder", "s3://bucket/a.tar") == "s3://bucket/a.tar"
    assert storage.parent("s3://bucket/folder/a.tar") == "s3://bucket/folder"
    assert storage.parent(Path("folder/a.tar")) == "folder"


@pytest.mark.parametrize(
    ("status", "error"), [(404, FileNotFoundError), (410, FileNotFoundError), (403, PermissionError)]
)
def test_answers_over_http_have_their_meaning(status: int, error: type[OSError]) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(error, match=r"/a\.jpg"):
            storage.read_bytes(f"http://127.0.0.1:{server.server_port}/a.jpg")
        server.shutdown()
