"""The model card of converted weights: README.md of their folder, ready to upload, without paths of this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from omnitune.checkpoints.states import read_state
from omnitune.config import ExperimentOptions
from omnitune.paths import ADAPTER_FILE, COMFYUI_ADAPTER_FILE, COMFYUI_MODEL_FILE, STATE_FILE

CARD_FILE = "README.md"
MARK = "Written by `omnitune "  # by which a card is known to be no one's own
LICENCE = "apache-2.0"  # of the published OmniGen2
SHOWN = ("learning_rate", "lr_scheduler", "optimizer", "global_batch_size", "mixed_precision", "ema_decay")
SHOWN_OF_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_use_dora", "lora_use_rslora", "lora_target_modules")

LOADING = {
    "adapter": f"""    # Omnitune, or the published script with the same options
    omnitune generate --model_path OmniGen2/OmniGen2 --transformer_lora_path {ADAPTER_FILE} --instruction ".."

    # diffusers, with the transformer of a pipeline
    pipeline.transformer.load_lora_adapter("FOLDER", prefix="transformer", weight_name="{ADAPTER_FILE}")

    # peft
    PeftModel.from_pretrained(transformer, "FOLDER")
""",
    "transformer": """    # Omnitune, or the published script with the same options
    omnitune generate --model_path OmniGen2/OmniGen2 --transformer_path FOLDER --instruction ".."
""",
    "pipeline": """    # Omnitune, or the published script with the same options
    omnitune generate --model_path FOLDER --instruction ".."
""",
    "comfyui adapter": (
        f"    # ComfyUI: put {COMFYUI_ADAPTER_FILE} into models/loras, load it with LoraLoaderModelOnly\n"
    ),
    "comfyui model": (
        f"    # ComfyUI: put {COMFYUI_MODEL_FILE} into models/diffusion_models, load it with Load Diffusion Model\n"
    ),
}

LOADING["extracted"] = LOADING["adapter"] + "\n" + LOADING["comfyui adapter"]


def model_card(options: ExperimentOptions, model_path: Path, report: Mapping[str, Any]) -> str:
    """Text of the card: base and licence, data, options, how to load it.

    Args:
        options: the experiment's.
        model_path: the checkpoint; of one of ours, step and data are told.
        report: content of conversion.json, without its files.
    """
    known = model_path.is_dir() and (model_path / STATE_FILE).is_file()
    state = read_state(model_path) if known else None
    parts = [
        _front(_base(options), is_adapter=options.train.lora_ft or report["format"] == "extracted"),
        f"# {options.name}\n",
        f"{_sentence(options, report, state.step if state else None)}\n",
    ]
    if state:
        parts += ["## Data\n", _data(state.identity.get("data", {}))]
    parts += [
        "## Training\n",
        _options(options),
        "## Loading\n",
        LOADING[_kind(report)],
        _verified("trained weights", report),
        MARK + "convert`.\n",
    ]
    return "\n".join(parts)


def merge_card(report: Mapping[str, Any]) -> str:
    """Text of the card of adapters that were merged: with which strengths, and how to load what came of it.

    Args:
        report: content of conversion.json, without its files.
    """
    rows = [f"| {found['sha256']} | {found['scale']:g} |" for found in report["adapters"]]
    parts = [
        _front(None, is_adapter=False),
        "# OmniGen2 with adapters merged in\n",
        f"{report['parameters']:,} parameters, {report['dtype']}.\n",
        "\n".join(["| SHA-256 of the adapter | strength |", "|---|---|", *rows, ""]),
        "## Loading\n",
        LOADING[_kind(report)],
        _verified("sum", report),
        MARK + "merge`.\n",
    ]
    return "\n".join(parts)


def _base(options: ExperimentOptions) -> str | None:
    """The repository of the base model; None for a local one, whose path is nobody's business."""
    name = options.model.pretrained_model_path
    local = options.model.upstream or options.model.transformer_path or Path(name).exists() or name.count("/") != 1
    return None if local else name


def _front(base: str | None, *, is_adapter: bool) -> str:
    content: dict[str, Any] = {"license": LICENCE, "library_name": "diffusers", "pipeline_tag": "image-to-image"}
    content |= {"base_model": base} if base else {}
    content["tags"] = ["omnigen2", "text-to-image", *(["lora"] if is_adapter else [])]
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n"


def _sentence(options: ExperimentOptions, report: Mapping[str, Any], step: int | None) -> str:
    kind = {"lora": "A LoRA adapter of", "full": "A fine-tune of"}[report["kind"]]
    if report["format"] == "extracted":
        found = report["extracted"]
        kind = f"A LoRA of rank {found['rank']}, with {found['explained']:.1%} of what was changed by a fine-tune of"
    merged = ", merged into its base" if report["merged"] else ""
    steps = f" after {step} steps" if step is not None else ""
    average = ", the average of its weights" if report["ema"] else ""
    base = _base(options) or "OmniGen2 (from weights of its own)"
    return f"{kind} {base}{merged}{steps}{average}; {report['parameters']:,} parameters, {report['dtype']}."


def _data(sources: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [f"| {name} | {found['samples']} | {found['ratio']:.3g} |" for name, found in sorted(sources.items())]
    return "\n".join(["| source | samples | share |", "|---|---|---|", *rows, ""])


def _options(options: ExperimentOptions) -> str:
    names = (*SHOWN, *(SHOWN_OF_LORA if options.train.lora_ft else ()))
    values = [(name, getattr(options.train, name)) for name in names]
    return "\n".join([*(f"- {name}: {value}" for name, value in values if value is not None), ""])


def _kind(report: Mapping[str, Any]) -> str:
    if report["format"] == "extracted":
        return "extracted"
    apart = report["kind"] == "lora" and not report["merged"]
    if report["format"] == "comfyui":
        return "comfyui adapter" if apart else "comfyui model"
    return "pipeline" if report["format"] == "pipeline" else "adapter" if apart else "transformer"


def _verified(wanted: str, report: Mapping[str, Any]) -> str:
    """How far what programs read is from what it should be; of an extraction the change of each layer is compared."""
    extracted = report["format"] == "extracted"
    key, what = ("error", "error of a layer's change") if extracted else ("difference", "difference")
    rows = [f"- {found['read_as']}: largest relative {what} {found[key]:.1e}" for found in report["verified"]]
    return "\n".join([f"Compared with the {wanted}, as read by\n", *rows, ""])
