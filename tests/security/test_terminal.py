"""Text of strangers on a terminal: nothing in it acts, and all of it can be written."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.models import tiny_vae
from omnitune.cli.weights import inspect
from omnitune.console import VERBOSITIES, setup_process
from omnitune.errors import printable
from omnitune.models import read_lora
from omnitune.models.lora.base_fingerprint import BASE_KEY

pytestmark = pytest.mark.unit

PAIR = {f"transformer.layers.0.attn.to_q.lora_{end}.weight": torch.zeros(2, 2) for end in "AB"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b]0;title\x07\x1b[31m", r"a\x1b]0;title\x07\x1b[31m"),
        ("\x9b2J\r\b", r"\x9b2J\r\x08"),
        ("\ud800 \u202etxt", r"\ud800 \u202etxt"),
        ("one\n\ttwo", "one\n\ttwo"),
        ("\u65e5\u672c\u3000\u0645\u06cc\u200c\u0634\u0648\u062f \U0001f469\u200d\U0001f680", None),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, expected: str | None) -> None:
    assert printable(text) == (text if expected is None else expected)


def test_log_lines_are_printable(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        setup_process()
        logging.getLogger("omnitune").error("Error: %s", "a\x1b[31m\ud800")
    finally:
        root.handlers[:], root.level = before, level
    assert capfd.readouterr().err == "Error: a\\x1b[31m\\ud800\n"


@pytest.mark.slow
def test_advice_of_the_libraries_is_left_out(tmp_path: Path) -> None:
    """Warnings of keys that are not used, or of tensors that lack, which are refused here."""
    tiny_vae().save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "not_a_key": 1}))
    code = (
        "from omnitune.console import VERBOSITIES, setup_process; setup_process()\n"
        f"from omnitune.models.components import load_vae; load_vae({str(tmp_path)!r})"
    )
    plain = {name: value for name, value in os.environ.items() if name not in VERBOSITIES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain, check=True)
    assert "not_a_key" not in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_names_in_a_file_are_shown_with_escapes(
    tmp_path: Path, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a\x1b[31m": torch.ones(2), "\ud800": torch.ones(1), "z" * 100_000: torch.ones(1)}, tmp_path / "x.bin")
    inspect(tmp_path / "x.bin", as_json)
    found = capsys.readouterr().out
    found.encode("utf-8")
    assert ("a\\u001b[31m" if as_json else "a\\x1b[31m, zzz") in found
    assert "\x1b" not in found
    assert as_json or max(map(len, found.splitlines())) < 2_100


def test_a_base_that_is_no_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(PAIR, path, {BASE_KEY: "a" * 64})
    read_lora(path)
    for base in ("\x1b[31m", "a" * 100_000, "A" * 64, ""):
        save_file(PAIR, path, {BASE_KEY: base})
        with pytest.raises(ValueError, match=r"its metadata say omnitune_base: '.*', no SHA-256") as error:
            read_lora(path)
        assert "\x1b" not in str(error.value) and len(str(error.value)) < 400
