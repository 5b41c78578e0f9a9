"""Omnitune: fine-tune OmniGen2 as a Snakemake workflow."""

import logging

# Where torchao is installed, importing diffusers warns of its kernels, which only GPUs of some kinds have.
for _name in ("torchao", "diffusers.quantizers.torchao.torchao_quantizer", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
