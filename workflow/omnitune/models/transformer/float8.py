"""Float8 matrix products in the transformer's blocks, by torchao."""

import sys
from typing import Any

import torch
from torch import nn

from omnitune.console import UNUSED
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Transformer2DModel, OmniGen2TransformerBlock

MULTIPLE = 16
CAPABILITY = (8, 9)  # from which GPUs multiply float8
OFF = "set train.fp8: false"


def convert_to_float8(model: OmniGen2Transformer2DModel, emulate: bool = False) -> None:
    """Make the Linear layers of attention and feed-forward compute in float8, in place; names of parameters stay.

    Each product scales its operands by their largest magnitude; weights and gradients keep their dtype. Call it before
    compile_blocks. Modulations, embedders, the output and adapters are not converted.

    Args:
        model: on any device, meta included; it will run on this process's GPU.
        emulate: compute with values rounded to float8, on any device.

    Raises:
        ValueError: without torchao, without a GPU that has float8, and for layers whose sizes do not fit.
    """
    layers = _layers(model)
    _check_sizes(model, layers)
    if not emulate:
        _check_device()
    if sys.modules.get(UNUSED, True) is None:  # hidden from the libraries alone
        del sys.modules[UNUSED]
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ValueError(f"train.fp8: true needs torchao: `pip install torchao`, or {OFF}") from None
    # a weight's gradient sums over the tokens of a packed batch, whose number is any: that side is padded
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in layers)


def _layers(model: Any) -> dict[str, nn.Linear]:
    """The layers to convert, by name."""
    blocks = {name for name, module in model.named_modules() if isinstance(module, OmniGen2TransformerBlock)}
    places = tuple(f"{block}.{part}." for block in blocks for part in ("attn", "feed_forward"))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(places) and ".lora_" not in name
    }


def _check_device() -> None:
    found = "none"
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability >= CAPABILITY:
            return
        found = "{} of {}.{}".format(torch.cuda.get_device_name(), *capability)
    raise ValueError(f"train.fp8: true needs a CUDA GPU of compute capability 8.9 or above; found: {found}. Or {OFF}")


def _check_sizes(model: OmniGen2Transformer2DModel, layers: dict[str, nn.Linear]) -> None:
    for name, layer in layers.items():
        for size in (layer.in_features, layer.out_features):
            if size % MULTIPLE:
                raise ValueError(
                    f"train.fp8: true does not fit this model (hidden_size {model.config.hidden_size}): {name} has a "
                    f"side of {size}, and float8 matrix products take multiples of {MULTIPLE} on every side, so that "
                    f"padding the inner one is not enough: {OFF}"
                )
