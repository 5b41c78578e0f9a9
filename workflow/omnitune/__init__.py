"""Omnitune: fine-tune OmniGen2 as a Snakemake workflow."""
