"""Where everything lies, relative to the project: templates with the workflow's wildcards, names made and parsed."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

DEMO = "resources/demo"
PRETRAINED = "resources/pretrained/{model}"
MANIFEST_FILE = "manifest.json"  # of a base model that the workflow has made: SHA-256 of its files
BASE_MANIFEST = f"{PRETRAINED}/{MANIFEST_FILE}"
PROTOCOL = "resources/benchmarks/{benchmark}/protocol.json"
SCORING = "resources/benchmarks/{benchmark}/scoring.json"
IMPORTED = "resources/benchmarks/{benchmark}/imported/prompts.jsonl"  # of a foreign format, in ours; images beside it

PREPARED = "prepared/{dataset}"
VALIDATION = f"{PREPARED}/validation"
SAMPLES, REJECTED, SUMMARY = "samples.parquet", "rejected.jsonl", "summary.json"  # of a source and of a data set
VALIDATED_SOURCE = f"{VALIDATION}/sources/{{source}}"
MANIFESTS = f"{VALIDATION}/shards"
MANIFEST_DIGEST = f"{MANIFESTS}/{{source}}-{{shard}}.sha256"

SHARDS = f"{PREPARED}/shards"
SHARD = f"{SHARDS}/{{source}}-{{shard}}"
TAR, SHARD_INDEX = f"{SHARD}.tar", f"{SHARD}.parquet"
INDEX, MAPPED_INDEX = f"{SHARDS}/index.parquet", f"{SHARDS}/index.arrow"
SHARD_DIGESTS = f"{SHARDS}/digests"

ENCODED = f"{PREPARED}/encoded/{{model}}"
ENCODED_GROUP = f"{ENCODED}/groups/{{source}}-{{group}}.parquet"

EXPERIMENT = "experiments/{experiment}"
IDENTITY = f"{EXPERIMENT}/identity.json"
OPTIONS = f"{EXPERIMENT}/options.yml"
VARIANT = f"{EXPERIMENT}/variant.yml"  # options of a variant that a sweep makes, which no file of the user's has
TRAINED = f"{EXPERIMENT}/train.json"
CHECKPOINT = f"{EXPERIMENT}/checkpoint-{{step}}"
METRICS = f"{EXPERIMENT}/logs/metrics.jsonl"
STATE_FILE = "trainer_state.json"  # in a checkpoint; written last
MODEL_FOLDER, OPTIMIZER_FOLDER, AVERAGE_FOLDER = (
    "pytorch_model_fsdp_0",
    "optimizer_0",
    "ema_0",
)  # in a checkpoint, sharded
METADATA_FILE = ".metadata"  # in each of these folders; says what the files beside it hold
CONVERTED = f"{CHECKPOINT}/{{weights}}"
CONVERSION_FILE = "conversion.json"  # in converted weights; written last
CONVERSION = f"{CONVERTED}/{CONVERSION_FILE}"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # in converted adapters
EVALUATIONS = f"{EXPERIMENT}/evaluation/{{step}}"
EVALUATION = f"{EVALUATIONS}/{{benchmark}}"
PART = f"{EVALUATION}/parts/{{part}}.jsonl"
SCORES_FILE, GENERATIONS_FILE = "scores.json", "generations.jsonl"  # of an evaluation, all parts together
SCORES, GENERATIONS = f"{EVALUATION}/{SCORES_FILE}", f"{EVALUATION}/{GENERATIONS_FILE}"
JUDGEMENTS = f"{EVALUATION}/judgements/{{judge}}.jsonl"
ANSWERS = "resources/judgements/{judge}"  # a file for each answer of a judge, by the hash of what it was asked
VOTES = "votes/{benchmark}.jsonl"  # which of two images people prefer
OFFICIAL = f"{EVALUATION}/official"  # the same images as the scorer of the prompts' format reads them
PROMPTS_FILE = "prompts.jsonl"  # of images that are drawn while training
STARTS_FILE = "starts.jsonl"  # in logs/ of an experiment: when and on what its training began and went on
REPORT = f"{EXPERIMENT}/report/index.html"
REPORT_TABLES = [f"{EXPERIMENT}/report/{name}.csv" for name in ("scores", "generations", "metrics")]
COMPARISON, COMPARISON_TABLE = (f"comparisons/{{comparison}}/{name}" for name in ("index.html", "scores.csv"))

SAFE_SIGNS = "_ .,:=+@%~()[]/-"  # of paths that reach a job, beside letters
MAX_NAME_BYTES = 160  # of what names folders and files: file systems allow MAX_FILE_BYTES with what is put around it
MAX_FILE_BYTES, MAX_PATH = 255, 2000  # of a name in a path, and characters of a path that is put behind others
SHARD_NUMBER = r"[0-9]{5}[0-9]*"  # Snakemake would not understand {5,}
SHARD_NAME = re.compile(rf"(?P<source>[^-/\s]+)-(?P<shard>{SHARD_NUMBER})")
Format = Literal["diffusers", "comfyui", "merged", "pipeline", "extracted"]  # of converted weights
FORMATS: tuple[Format, ...] = get_args(Format)  # what others build on is the first
PEFT_FILE, PEFT_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # the same adapter as peft names it
COMFYUI_MODEL_FILE, COMFYUI_ADAPTER_FILE = "comfyui_model.safetensors", "comfyui_lora.safetensors"
WEIGHTS_NAME = rf"transformer(_lora)?(_ema)?(_{'|_'.join(FORMATS[1:])})?"
CONVERTED_PATH = re.compile(
    r"(\./)?experiments/(?P<experiment>[^/]+)/checkpoint-(?P<step>\d+)/transformer(?P<lora>_lora)?(?P<ema>_ema)?"
    r"(?(lora)(/(pytorch_lora_weights\.safetensors)?)?|/?)"
)

BASELINE = "baseline-"  # of the folder of a baseline's evaluation


class EvaluatedStep(NamedTuple):
    """Weights to convert and evaluate; sorted: the base, baselines, checkpoints, an average after its step's weights.

    Attributes:
        number: optimizer steps; 0 is what the experiment started from, or a baseline.
        ema: the average of the weights (train.ema_decay) in their place.
        lora_scale: by which their adapter is scaled.
        baseline: name of other weights, which no experiment has trained (`baselines` of a benchmark).
    """

    number: int
    ema: bool = False
    lora_scale: float = 1.0
    baseline: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of str(); ValueError for any other text."""
        if text.startswith(BASELINE) and text != BASELINE:
            return cls(0, baseline=text.removeprefix(BASELINE))
        match = re.fullmatch(r"(\d+)(-ema)?(?:-x(\d+(?:\.\d+)?))?", text)
        if match is None:
            raise ValueError(f"step {text!r} is not allowed: needs a number of steps, as in 500, 500-ema or 500-x0.5.")
        return cls(int(match[1]), match[2] is not None, float(match[3] or 1))

    def __str__(self) -> str:
        """Name of the folder in evaluation/."""
        if self.baseline:
            return f"{BASELINE}{self.baseline}"
        scale = "" if self.lora_scale == 1 else f"-x{self.lora_scale:g}"
        return f"{self.number}{'-ema' if self.ema else ''}{scale}"

    @property
    def is_plain(self) -> bool:
        """Whether these are the weights as they were trained."""
        return not self.ema and self.lora_scale == 1 and not self.baseline

    @property
    def label(self) -> str:
        """For people."""
        if not self.number:
            return self.baseline or "base"
        scale = "" if self.lora_scale == 1 else f", LoRA x {self.lora_scale:g}"
        return f"step {self.number}{' (EMA)' if self.ema else ''}{scale}"


BASE = EvaluatedStep(0)


def is_letter(sign: str) -> bool:
    """Whether it is a letter or digit of any script, or a mark beside one: plain in a shell, quoted or not."""
    return sign.isalnum() or unicodedata.category(sign).startswith("M")


def file_stem(path: Path | str) -> str:
    """The name of a file without its extension, as it names what is made of it: in one form, whoever has written it."""
    return unicodedata.normalize("NFC", Path(path).stem)


def names_folder(name: str) -> bool:
    """Whether it may name folders and wildcards: letters and digits of any script, `_`, `-` and `.`, not too many."""
    first, signs = name[:1], all(is_letter(sign) or sign in "_.-" for sign in name)
    return (first == "_" or first.isalnum()) and signs and len(name.encode()) <= MAX_NAME_BYTES


def path_problem(path: str) -> str | None:
    """Why no file can have this path, which the methods of Path raise for; None where one can. For URLs only NUL is."""
    if "\0" in path:
        return "holds a NUL byte, which no path does"
    try:
        longest = 0 if "://" in path else max(map(len, os.fsencode(path).split(b"/")))
    except UnicodeEncodeError:
        return "holds half of a character (\\ud800 to \\udfff), which no path does"
    if longest > MAX_FILE_BYTES or len(path) > MAX_PATH:
        return f"is too long: at most {MAX_FILE_BYTES} bytes between two `/`, and {MAX_PATH} characters in all"
    return None


def local_problem(path: str) -> str | None:
    """The same where no URL is read."""
    return "is a URL: download what is there, and name its path" if "://" in path else path_problem(path)


def require_safe(path: Path | str, where: str) -> None:
    """Raises ValueError for a path that may not become an input of a job, which executors of clusters put into a shell.

    Args:
        path: of a file.
        where: what names it, for the message.
    """
    text = str(path)
    found = sorted({sign for sign in text if not is_letter(sign) and sign not in SAFE_SIGNS})
    if found or text.startswith("-"):
        signs = " ".join(map(repr, found)) or "'-' at its beginning"
        raise ValueError(
            f"{where}: the path {text!r} is not allowed, for {signs}: schedulers put paths into a shell. Rename it: "
            "letters and digits of any script, spaces and . , : = + @ % ~ ( ) [ ] _ - are allowed."
        )


def path_hint(path: str) -> str:
    """What is likely wrong with a path that leads to nothing, for the end of a message; empty where nothing shows."""
    if path != path.strip():
        return " (it begins or ends with a space or a line's end)"
    if path.startswith(("~", "$")):
        return f" ({path.partition('/')[0]} is not expanded: write the folder itself)"
    return " (folders are separated by /, not by \\)" if "\\" in path else ""


def shard_name(source: str, shard: int) -> str:
    """Stem of a shard's manifest, which validation names, and of its tar and indexes, which are named after it."""
    return f"{source}-{shard:05d}"


def parse_shard(path: Path | str) -> tuple[str, int]:
    """Source and number of a shard, from the path or URL of a file named after it; ValueError for another name."""
    match = SHARD_NAME.fullmatch(str(path).rpartition("/")[2].rpartition(".")[0])
    if match is None:
        raise ValueError(f"{path}: shards are named {{source}}-{{shard}}, with five digits or more for the shard")
    return match["source"], int(match["shard"])


def group_name(group: int) -> str:
    """A group of shards in a file's name."""
    return f"{group:04d}"


def weights_name(lora: bool, ema: bool = False, format: str = FORMATS[0]) -> str:
    """Folder of converted weights, or of their average's, inside a checkpoint."""
    return f"transformer{'_lora' if lora else ''}{'_ema' if ema else ''}{'' if format == FORMATS[0] else f'_{format}'}"


def formats_of(lora: bool) -> list[str]:
    """The formats that there are of an adapter, or of all weights: one is merged, of the other one is extracted."""
    return [name for name in FORMATS if name != ("extracted" if lora else "merged")]


def format_of(weights: str) -> str:
    """The format of a folder that is named by `weights_name`."""
    return next((name for name in FORMATS[1:] if weights.endswith(f"_{name}")), FORMATS[0])


def parse_converted(path: str | None) -> tuple[str, EvaluatedStep, bool] | None:
    """(experiment, step or its average, whether an adapter) of a path to converted weights; None for other paths."""
    match = CONVERTED_PATH.fullmatch(path or "")
    if match is None:
        return None
    return match["experiment"], EvaluatedStep(int(match["step"]), bool(match["ema"])), bool(match["lora"])


def adapter_file(path: str, name: str = ADAPTER_FILE) -> Path:
    """The file of an adapter, which is named by itself or by its folder: `name`, else peft's or ComfyUI's."""
    if path.endswith(".safetensors") or Path(path).is_file():
        return Path(path)
    files = [Path(path) / file for file in (name, PEFT_FILE, COMFYUI_ADAPTER_FILE)]
    return next((file for file in files if file.is_file()), files[0])


def starting_adapter_file(lora_path: str) -> Path:
    """The same of train.lora_path; ValueError where there is none."""
    path = adapter_file(lora_path)
    if not path.is_file():
        raise ValueError(f"train.lora_path: {path} does not exist. Name a {ADAPTER_FILE} or the folder that holds one.")
    return path


def conversion_file(experiment: str, step: EvaluatedStep, lora: bool, format: str = FORMATS[0]) -> str:
    """The file that a conversion writes last."""
    return CONVERSION.format(experiment=experiment, step=step.number, weights=weights_name(lora, step.ema, format))
