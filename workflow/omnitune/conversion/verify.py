"""Load an exported folder as a user would and compare every tensor with what was meant to be saved."""

from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict

from omnitune.conversion.keys import empty_transformer
from omnitune.conversion.read import State, some
from omnitune.models import OmniGen2Transformer2DModel, load_lora
from omnitune.paths import ADAPTER_FILE


def verify(save_path: Path, expected_state: State, config: dict[str, Any] | None = None) -> None:
    """Loads a folder through the public loading code and compares it bit for bit, in the dtype that was saved.

    Args:
        save_path: a `transformer` folder, or a `transformer_lora` folder with ADAPTER_FILE.
        expected_state: the tensors that it must hold; of a LoRA under `<module>.lora_A.weight`.
        config: architecture that a LoRA is loaded into; needed for a LoRA only.

    Raises:
        ValueError: naming every tensor that is missing, too many or different.
    """
    if (save_path / ADAPTER_FILE).is_file():
        if config is None:
            raise ValueError(f"{save_path}: to verify a LoRA, the config of its transformer is needed.")
        loaded = _load_lora(save_path, config, expected_state)
    else:
        loaded = _load_transformer(save_path, expected_state)
    _compare(save_path, loaded, expected_state)


def _load_transformer(save_path: Path, expected: State) -> State:
    dtype = next(iter(expected.values())).dtype
    return dict(OmniGen2Transformer2DModel.from_pretrained(save_path, torch_dtype=dtype).state_dict())


def _load_lora(save_path: Path, config: dict[str, Any], expected: State) -> State:
    # memory of an empty parameter is reserved but never touched, so that a large base costs nothing here
    model = empty_transformer(config).to(next(iter(expected.values())).dtype).to_empty(device="cpu")
    load_lora(model, save_path, adapter_name="verified", low_cpu_mem_usage=True)
    return dict(get_peft_model_state_dict(model, adapter_name="verified"))


def _compare(save_path: Path, loaded: State, expected: State) -> None:
    if loaded.keys() != expected.keys():
        lost, added = expected.keys() - loaded.keys(), loaded.keys() - expected.keys()
        raise ValueError(
            f"{save_path}: after loading, missing: {some(lost) or 'none'}; added: {some(added) or 'none'}."
        )
    different = [name for name, tensor in expected.items() if not _same_bits(loaded[name], tensor)]
    if different:
        raise ValueError(f"{save_path}: {len(different)} tensors differ after loading: {some(different)}.")


def _same_bits(loaded: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal shape and bits; the loader may have widened a tensor, which loses nothing."""
    if loaded.shape != expected.shape:
        return False
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    narrowed = loaded.to(expected.dtype).contiguous()
    return torch.equal(narrowed.view(bits), expected.contiguous().view(bits))
