"""Encoded data: what is stored, that training from it is training online, what it is bound to, and killed encodings."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from helpers.tiny import TRANSFORMER
from omnitune.config import ExperimentOptions
from omnitune.demo.base_model import build_base_model
from omnitune.distributed.processes import Topology
from omnitune.encoding.encode import EncodingFiles, encode_dataset
from omnitune.encoding.fingerprint import fingerprint_of
from omnitune.encoding.groups import group_shards
from omnitune.encoding.read import EncodedIndex
from omnitune.errors import ConfigError
from omnitune.images.prepare import ImageLimits
from omnitune.io.files import json_line, lock, sha256_of, write_json
from omnitune.models import OmniGen2Transformer2DModel, encode_text
from omnitune.models.components import load_text_encoder, load_tokenizer, load_vae
from omnitune.paths import MANIFEST_FILE
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.shard import write_shard
from omnitune.sharding.write_index import write_index
from omnitune.training.inputs import TrainingFiles
from omnitune.training.loop import Trainer

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROWS = 9
INPUTS = {"t2i": 0, "edit": 1, "ic": 2}
SIZES = [(32, 48), (48, 32), (32, 32)]
ONE, TWO = Topology(1), Topology(2)


def write_shards(folder: Path, source: str) -> list[Path]:
    """Three shards of three samples, with images of three sizes."""
    rng = np.random.default_rng(len(source))
    parts = []
    for shard in range(3):
        lines = []
        for k in range(shard * 3, shard * 3 + 3):
            paths = [folder / f"{source}-{k}-{n}.png" for n in range(INPUTS[source] + 1)]
            for path in paths:
                Image.fromarray(rng.integers(0, 256, (*SIZES[k % 3], 3), np.uint8)).save(path)
            row: dict[str, Any] = {"key": f"{source}_{k + 1:08d}", "source": source, "task_type": source}
            row["instruction"] = f"The image shows {'a red ' * (k % 4)}circle {k}"
            row |= {"input_images": list(map(str, paths[:-1])), "output_image": str(paths[-1]), "text_tokens": 30}
            row |= {"bytes": [path.stat().st_size for path in paths], "sha256": [sha256_of(path) for path in paths]}
            lines.append(json_line(row))
        manifest = folder / f"{source}-{shard:05d}.jsonl"
        manifest.write_text("".join(lines))
        part = folder / "shards" / f"{source}-{shard:05d}.parquet"
        write_shard(manifest, part.with_suffix(".tar"), part, ImageLimits(4096, 4096, 64))
        parts.append(part)
    return parts


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, the demo's base model, and a transformer whose prediction depends on everything that it is given."""
    folder = tmp_path_factory.mktemp("project")
    parts = [part for source in INPUTS for part in write_shards(folder, source)]
    write_index(parts, folder / "shards" / "index.parquet")
    entries = [{"path": str(folder / f"{source}.jsonl"), "ratio": 1} for source in INPUTS]
    (folder / "mix.yml").write_text(yaml.safe_dump({"data": entries}))
    base = folder / "base"
    build_base_model(base)
    files = {path.relative_to(base).as_posix(): sha256_of(path) for path in base.rglob("*") if path.is_file()}
    write_json(base / MANIFEST_FILE, files)
    torch.manual_seed(0)
    model = OmniGen2Transformer2DModel(**{**TRANSFORMER, "text_feat_dim": 128})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "transformer")
    return folder


def options_of(project: Path, **data: Any) -> ExperimentOptions:
    """Options of a training of some steps, written to options.yml too; keyword arguments change `data`."""
    precision = data.setdefault("encoded_precision", "fp32")
    content = {
        "name": "encoded",
        "data": {
            "data_path": str(project / "mix.yml"),
            "source_root": str(project.parents[1]),
            "maximum_text_tokens": 64,
            "max_side_length": 64,
            "encode": True,
        }
        | {"prompt_dropout_prob": 0.3, "max_output_pixels": 4096, "max_input_pixels": 4096, "shards_per_encoding": 2}
        | data,
        "model": {"pretrained_model_path": "demo"},
        "train": {"global_batch_size": 6, "batch_size": 6, "max_train_steps": 5, "dataloader_num_workers": 0}
        | {"learning_rate": 1e-4, "lr_scheduler": "constant", "gradient_checkpointing": False}
        | {"mixed_precision": "no" if precision == "fp32" else "bf16"},
        "logger": {"log_with": None},
    }
    (project / "options.yml").write_text(yaml.safe_dump(content))
    return ExperimentOptions.load(project / "options.yml")


def encoding(project: Path, output: str = "encoded", topology: Topology = ONE, **data: Any) -> Path:
    files = EncodingFiles(project / "options.yml", project / "base", project / output)
    encode_dataset(options_of(project, **data), files, project / "shards" / "index.parquet", topology)
    return files.output


@pytest.fixture(scope="module")
def encoded(project: Path) -> Path:
    return encoding(project)


def opened(project: Path, folder: Path, **data: Any) -> EncodedIndex:
    options = options_of(project, **data)
    index = ShardIndex.load(project / "shards" / "index.parquet")
    fingerprint = fingerprint_of(project / "base", options.data)
    return EncodedIndex(folder, fingerprint, index, list(INPUTS), options.data.shards_per_encoding)


@pytest.fixture
def changed(project: Path, encoded: Path, tmp_path: Path) -> Path:
    """A copy of the project, to be damaged."""
    shutil.copytree(project, tmp_path / "project", ignore=shutil.ignore_patterns("*.png"))
    return tmp_path / "project"


def test_what_is_stored_is_what_the_models_say(project: Path, encoded: Path) -> None:
    base = project / "base"
    vae, tokenizer, mllm = load_vae(base), load_tokenizer(base), load_text_encoder(base)
    index, stored = ShardIndex.load(project / "shards" / "index.parquet"), opened(project, encoded)
    for source, inputs in INPUTS.items():
        for number in range(ROWS):
            row = index.row(source, number)
            sample = stored.read(source, number, row.key)
            assert len(sample.posteriors) == inputs + 1
            for k, (mean, std) in enumerate(sample.posteriors):
                image = np.asarray(Image.open(project / f"{source}-{number}-{k}.png"), np.float32)
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
                with torch.no_grad():
                    posterior = vae.encode(pixels).latent_dist
                torch.testing.assert_close(mean, posterior.mean[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(std, posterior.std[0], rtol=1e-4, atol=1e-6)
            texts = [row.instruction, row.instruction.removeprefix("The image shows ")]
            expected = [encode_text(mllm, tokenizer, [text], max_length=64)[0][0] for text in texts]
            torch.testing.assert_close(sample.text, expected[0], rtol=1e-4, atol=1e-5)
            assert (sample.text_without_cliche is not None) == (source == "t2i")
            if sample.text_without_cliche is not None:
                torch.testing.assert_close(sample.text_without_cliche, expected[1], rtol=1e-4, atol=1e-5)
    dropped = encode_text(mllm, tokenizer, [""], drop=True)[0][0]
    torch.testing.assert_close(stored.dropped, dropped, rtol=1e-4, atol=1e-5)
    sent = pickle.loads(pickle.dumps(stored)).read("ic", 4, "ic_00000005")
    assert torch.equal(sent.text, stored.read("ic", 4, "ic_00000005").text)


def test_a_tar_has_one_member_beside_each_key(project: Path, encoded: Path) -> None:
    for tar in sorted((project / "shards").glob("*.tar")):
        with tarfile.open(tar) as shard, tarfile.open(encoded / tar.name) as archive:
            keys = [name.removesuffix(".json") for name in shard.getnames() if name.endswith(".json")]
            assert archive.getnames() == [f"{key}.safetensors" for key in keys]
            for member in archive:
                tensors = safetensors.torch.load(archive.extractfile(member).read())  # type: ignore[union-attr]
                assert tensors["output.mean"].shape == tensors["output.logvar"].shape
                assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def losses(project: Path, name: str, **data: Any) -> list[float]:
    """Losses of a training in a folder of its own."""
    options = options_of(project, **data)
    output = project / name
    paths = {"base": project / "base", "transformer": project / "transformer", "encoded": project / f"encoded-{name}"}
    files = TrainingFiles(project / "options.yml", **paths, index=project / "shards/index.parquet", output=output)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process of its own each time, as when launched
    trainer = Trainer(options, files)
    trainer.fit()
    kinds = set()
    for step in range(options.train.max_train_steps):
        for slot, _, row in trainer.data.batches.slots(step, 0):
            instruction, drop_prompt, drop_references = trainer.data.batches.condition(row, step, slot)
            kinds.add((drop_prompt, drop_references, instruction == row.instruction))
    assert kinds == {(False, False, True), (False, False, False), (True, False, False), (True, True, False)}
    rows = (output / "logs" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-3)])
def test_training_from_encoded_data_has_the_losses_of_training_online(
    changed: Path, precision: str, tolerance: float
) -> None:
    """With dropped prompts, dropped references, and captions with and without their cliche among the samples."""
    online = losses(changed, "online", encode=False, encoded_precision=precision)
    encoding(changed, "encoded-stored", encoded_precision=precision)
    for part in ("vae", "mllm"):
        (changed / "base" / part / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
        (changed / "base" / part / "model.safetensors").unlink(missing_ok=True)
    shutil.rmtree(changed / "base" / "processor")  # training loads none of these
    stored = losses(changed, "stored", encoded_precision=precision)
    assert len(online) == 5
    assert len({round(loss, 4) for loss in online}) > 1
    assert stored == pytest.approx(online, rel=tolerance)


def set_hash(folder: Path, file: str) -> None:
    """Makes another file of one of the base model's, which loads as before, and its manifest that of what is there."""
    manifest, path = json.loads((folder / "base" / MANIFEST_FILE).read_text()), folder / "base" / file
    path.write_text(path.read_text() + " ")
    write_json(folder / "base" / MANIFEST_FILE, {**manifest, file: sha256_of(path)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoded_precision": "bf16"}, r"encoded_precision: 'bf16' is asked, encoded with 'fp32'"),
        ({"maximum_text_tokens": 20}, r"maximum_text_tokens: 20 is asked, encoded with 64"),
        ({"use_chat_template": False}, r"use_chat_template: False is asked, encoded with True"),
        ({"shards_per_encoding": 1}, r"holds the shards 00000, 00001, but should hold 00000 .*shards_per_encoding"),
    ],
)
def test_other_options_are_named(project: Path, encoded: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        opened(project, encoded, **data).read("ic", 0, "ic_00000001")
    assert str(error.value).count(" is asked, ") <= 1, "only what differs is named"


@pytest.mark.parametrize("file", ["vae/config.json", "mllm/config.json", "processor/tokenizer.json"])
def test_other_weights_are_named(changed: Path, file: str) -> None:
    set_hash(changed, file)
    with pytest.raises(ConfigError, match=f"{file.partition('/')[0]}: '[0-9a-f]{{64}}' is asked, encoded with '"):
        opened(changed, changed / "encoded")
    encoding(changed)
    opened(changed, changed / "encoded")


def test_a_changed_transformer_needs_no_new_encoding(changed: Path) -> None:
    set_hash(changed, "transformer/config.json")
    opened(changed, changed / "encoded")


def test_without_a_manifest_the_files_count(changed: Path) -> None:
    data = options_of(changed).data
    before = fingerprint_of(changed / "base", data)
    (changed / "base" / MANIFEST_FILE).unlink()
    assert fingerprint_of(changed / "base", data) == before
    config = changed / "base/vae/config.json"
    config.write_text(config.read_text() + " ")
    after = fingerprint_of(changed / "base", data)
    assert {name for name in after if after[name] != before[name]} == {"vae"}


def test_other_shards_are_named_and_only_they_are_encoded_again(changed: Path) -> None:
    tar, part = (changed / "shards" / f"edit-00001.{extension}" for extension in ("tar", "parquet"))
    manifest = changed / "edit-00001.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    image = changed / "other.png"
    Image.new("RGB", (32, 32), "red").save(image)
    for row in rows:
        for key in ("bytes", "sha256"):
            row[key] = [image.stat().st_size if key == "bytes" else sha256_of(image)] * 2
        row |= {"input_images": [str(image)], "output_image": str(image)}
    manifest.write_text("".join(map(json_line, rows)))
    write_shard(manifest, tar, part, ImageLimits(4096, 4096, 64))
    write_index(sorted((changed / "shards").glob("*-*.parquet")), changed / "shards" / "index.parquet")
    with pytest.raises(ConfigError, match=r"edit-0000\.parquet: the tars of the shards 00001 are others now"):
        opened(changed, changed / "encoded")
    times = {path.name: path.stat().st_mtime_ns for path in (changed / "encoded").glob("*.tar")}
    encoding(changed)
    rewritten = {
        path.name for path in (changed / "encoded").glob("*.tar") if path.stat().st_mtime_ns != times[path.name]
    }
    assert rewritten == {"edit-00001.tar"}
    opened(changed, changed / "encoded").read("edit", 4, "edit_00000005")


def test_a_group_with_other_keys_is_refused(changed: Path) -> None:
    group = changed / "encoded/groups/t2i-0001.parquet"
    table = pq.read_table(group)
    column = table.schema.get_field_index("key")
    keys = pa.array(["other", *table["key"].to_pylist()[1:]])
    pq.write_table(table.set_column(column, table.schema.field(column), keys), group)
    with pytest.raises(ConfigError, match=r"t2i-0001\.parquet: its samples are not those of the index"):
        opened(changed, changed / "encoded")


def test_damaged_files_are_named(changed: Path) -> None:
    folder = changed / "encoded"
    tar = folder / "ic-00002.tar"
    place = pq.read_table(folder / "ic-00002.parquet").to_pylist()[1]
    whole = tar.read_bytes()
    stored = opened(changed, folder)
    assert len(stored.read("ic", 7, "ic_00000008").posteriors) == 3
    with pytest.raises(ValueError, match="is not what was encoded"):
        stored.read("ic", 7, "ic_00000009")  # another key

    tar.write_bytes(whole[: place["offset"] + 40])
    with pytest.raises(ValueError, match=rf"ic-00002\.tar: ends early: sample ic_00000008 at byte {place['offset']}"):
        stored.read("ic", 7, "ic_00000008")
    with pytest.raises(ValueError, match=r"ic-00002\.tar: has .* bytes.*snakemake --cores 2 encode"):
        opened(changed, folder)

    flipped = bytearray(whole)
    flipped[place["offset"] + place["size"] - 3] ^= 1
    tar.write_bytes(bytes(flipped))
    message = rf"ic-00002\.tar: sample ic_00000008 at byte {place['offset']} is not what was encoded"
    with pytest.raises(ValueError, match=message):
        opened(changed, folder).read("ic", 7, "ic_00000008")

    tar.unlink()
    with pytest.raises(ValueError, match=r"ic-00002\.tar: is missing"):
        opened(changed, folder)
    encoding(changed)
    assert tar.read_bytes() == whole
    (folder / "dropped.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"dropped\.safetensors: cannot be read.*omnitune encode"):
        opened(changed, folder)


def test_a_killed_encoding_keeps_what_is_finished(changed: Path, encoded: Path) -> None:
    """The process is killed while it waits for a shard's bytes, which come through a pipe that nobody writes to."""
    tar = changed / "shards" / "ic-00001.tar"
    whole = tar.read_bytes()
    tar.unlink()
    os.mkfifo(tar)
    options_of(changed)
    output = changed / "again"
    command = [sys.executable, "-m", "omnitune.cli", "encode", "--config", str(changed / "options.yml")]
    command += ["--num_threads", "1", "--base", str(changed / "base"), "--index", str(changed / "shards/index.parquet")]
    process = subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not ((output / "ic-00000.parquet").exists() and list(output.glob(".ic-00001.tar.*"))):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*-*.tar")}
    assert {path.name for path in finished} == {*(f"edit-0000{k}.tar" for k in range(3)), "ic-00000.tar"}
    assert not list((output / "groups").glob("*.parquet"))
    (half,) = output.glob(".*.tmp")
    assert half.name.startswith(".ic-00001.tar.")

    tar.unlink()
    tar.write_bytes(whole)
    encoding(changed, "again")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(output) == contents(encoded), "and nothing half written is left"


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of all files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_process_at_a_time_encodes_a_group(changed: Path) -> None:
    """The second one is refused, and changes nothing."""
    first = next((changed / "encoded/groups").glob("*.parquet"))
    before = first.read_bytes()
    with (
        lock(first.with_name(f".{first.stem}.lock"), "held"),
        pytest.raises(ValueError, match=rf"{first.name}: another process is encoding this group"),
    ):
        encoding(changed)
    encoding(changed)
    assert first.read_bytes() == before and not list(changed.rglob(".*.lock"))


def test_two_processes_give_the_bytes_of_one(project: Path, encoded: Path) -> None:
    assert contents(encoding(project, "by-two", TWO)) == contents(encoded)


def test_mistakes_of_processes_are_one_message(changed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(changed / "encoded")
    (changed / "shards" / "t2i-00002.tar").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"t2i-00002\.tar: ends early: sample t2i_00000007"):
        encoding(changed)
    with pytest.raises(ValueError, match="encoding mix failed with exit code 2; its messages stand above"):
        encoding(changed, topology=TWO)
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    (changed / "shards" / "index.parquet").unlink()
    with pytest.raises(ValueError, match=r"index\.parquet: is missing. Write shards first"):
        encoding(changed)


def test_groups_are_consecutive_numbers() -> None:
    shards = [Path(f"{source}-{number:05d}.jsonl") for source in ("b", "a_1") for number in (7, 0, 3, 4, 12)]
    stems = {key: [path.stem for path in paths] for key, paths in group_shards(shards, 4).items()}
    assert stems == {
        (source, group): [f"{source}-{number:05d}" for number in numbers]
        for source in ("a_1", "b")
        for group, numbers in ((0, (0, 3)), (1, (4, 7)), (3, (12,)))
    }
