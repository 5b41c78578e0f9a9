"""Small trained models, full and with adapters, and the forms that checkpoints of them are written in."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from helpers.tiny import TRANSFORMER
from omnitune.config import ExperimentOptions
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora.lora import TARGET_MODULES

CONFIG: dict[str, Any] = {
    **TRANSFORMER,
    "in_channels": 16,
    "num_layers": 1,
    "axes_dim_rope": [8, 8, 8],
    "axes_lens": [64, 64, 64],
}
RANK = 4


def options_for(
    *, lora: bool = False, alpha: int | None = None, arch: dict[str, Any] | None = None, **train: Any
) -> ExperimentOptions:
    return ExperimentOptions.model_validate(
        {
            "name": "tiny",
            "data": {"data_path": "mix.yml"},
            "model": {"pretrained_model_path": "demo", "arch_opt": arch},
            "train": {"lora_ft": lora, "lora_rank": RANK, "lora_alpha": alpha, **train},
        }
    )


def random_model(seed: int = 0) -> OmniGen2Transformer2DModel:
    torch.manual_seed(seed)
    model = OmniGen2Transformer2DModel(**CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def lora_model(targets: tuple[str, ...] = TARGET_MODULES, **options: Any) -> OmniGen2Transformer2DModel:
    model = random_model()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=8, target_modules=list(targets), **options))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def start_of(root: Path, config: dict[str, Any] = CONFIG) -> Path:
    """The folder of the transformer that training started from, as far as its architecture is asked for."""
    folder = root / f"start-{config['num_layers']}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "OmniGen2Transformer2DModel", **config}))
    return folder


def adapters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


def predict(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 16, 4, 6, generator=generator)
    text = torch.randn(2, 5, 32, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([0.3, 0.7]), text, None).sample


def write_distributed(state: dict[str, torch.Tensor], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder, no_dist=True)


def write_checkpoint(state: dict[str, torch.Tensor], folder: Path, form: str) -> None:
    folder.mkdir(parents=True)
    if form == "distributed":
        write_distributed(state, folder / "pytorch_model_fsdp_0")
    elif form == "wrapped":
        wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
        write_distributed(wrapped, folder / "pytorch_model_fsdp_0")
    elif form == "bin":
        torch.save(state, folder / "pytorch_model_fsdp.bin")
    elif form == "old_bin":
        torch.save(state, folder / "pytorch_model_fsdp.bin", _use_new_zipfile_serialization=False)
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
