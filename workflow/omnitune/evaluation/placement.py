"""Where the models of a pipeline are while it draws: on the GPU, or off it but for what works."""

import logging
from typing import Literal

import torch
from diffusers.hooks import apply_group_offloading

from omnitune.models import OmniGen2Pipeline
from omnitune.models.text.features import text_model_of

logger = logging.getLogger("omnitune")

Offload = Literal["sequential", "model", "group"]
BLOCKS_PER_GROUP = 2


def place(pipeline: OmniGen2Pipeline, offload: Offload | None, device: torch.device | None = None) -> OmniGen2Pipeline:
    """Puts a pipeline where it draws; without a GPU there is nothing to take models off.

    Args:
        pipeline: on the CPU.
        offload: None: all of it on the device. `model`: of its models one at a time. `group`: of these a few blocks,
            the next ones on their way. `sequential`: one layer; least memory, slowest.
        device: None takes a GPU if there is one.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if offload is None:
        return pipeline.to(device)
    if offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        # of the text encoder what is called: its vision tower never leaves the CPU
        for model in (pipeline.transformer, text_model_of(pipeline.mllm), pipeline.vae):
            apply_group_offloading(
                model,
                onload_device=device,
                offload_type="block_level",
                num_blocks_per_group=1 if device.type == "cuda" else BLOCKS_PER_GROUP,  # streams go with one
                use_stream=device.type == "cuda",
            )
    return pipeline
