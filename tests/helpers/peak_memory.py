"""Two training steps of a transformer in a process of its own, a small and a large one; prints how far its memory rose.

Usage: peak_memory.py '{"config": {..}, "train": {..}, "batch": [[text, [references], image], ..], "strategy":
"single"}' With the strategy fsdp, RANK, WORLD_SIZE and a rendezvous (MASTER_ADDR, MASTER_PORT) are in the environment.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from omnitune.config.experiment.training import TrainOptions
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.training.flow_matching import Conditioned, velocity_errors
from omnitune.training.model import hold_frozen, select_trained


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def build(config: dict[str, Any], train: TrainOptions, strategy: str) -> torch.nn.Module:
    model = OmniGen2Transformer2DModel(**config)
    select_trained(model, train)
    compute = torch.bfloat16 if train.mixed_precision == "bf16" else torch.float32
    hold_frozen(model, compute)
    if train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if strategy == "fsdp":
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for blocks in (model.context_refiner, model.noise_refiner, model.ref_image_refiner, model.layers):
            for block in blocks:
                fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    return model.train()


def latent(tokens: int, channels: int) -> torch.Tensor:
    side = 2 * math.isqrt(tokens)
    return torch.randn(channels, side, side)


def train_steps(config: dict[str, Any], train: TrainOptions, batch: list[Any], strategy: str) -> None:
    model = build(config, train, strategy)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    channels = config["in_channels"]
    for step in ([[8, [], 16]], batch):  # the optimizer's state is there from the second one on
        samples = [
            Conditioned(
                target=latent(image, channels),
                references=[latent(tokens, channels) for tokens in references],
                text=torch.randn(text, config["text_feat_dim"]),
                noise=latent(image, channels),
            )
            for text, references, image in step
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=train.mixed_precision == "bf16"):
            errors = velocity_errors(model, samples, torch.rand(len(samples)))
        errors.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    case = json.loads(sys.argv[1])
    strategy, train = case["strategy"], TrainOptions(**case["train"])
    torch.set_num_threads(1)
    if strategy == "fsdp":
        torch.distributed.init_process_group("gloo")
    small = {
        "hidden_size": 48,
        "num_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "axes_dim_rope": (8, 8, 8),
    }
    train_steps(case["config"] | small, train, [[8, [16], 16]], strategy)  # loads libraries
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    train_steps(case["config"], train, case["batch"], strategy)
    print(json.dumps({"bytes": status("VmHWM") - before}), flush=True)
    if strategy == "fsdp":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
