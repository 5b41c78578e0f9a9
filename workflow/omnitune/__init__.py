"""Omnitune: fine-tune OmniGen2 as a Snakemake workflow."""

import gc
import logging

# What importing the libraries makes stays; looking for garbage among it takes a fifth of a process's start.
gc.set_threshold(50_000, *gc.get_threshold()[1:])

# Where torchao is installed, importing diffusers warns of its kernels, which only GPUs of some kinds have.
for _name in ("torchao", "diffusers.quantizers.torchao.torchao_quantizer", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
