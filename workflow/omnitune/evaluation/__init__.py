"""Evaluation: prompts, images, measures."""

from omnitune.evaluation.benchmark import Prompt, part_of, protocol_fingerprint, read_prompts
from omnitune.evaluation.generate import describe_weights, generate, load_pipeline
from omnitune.evaluation.metrics import score

__all__ = [
    "Prompt",
    "describe_weights",
    "generate",
    "load_pipeline",
    "part_of",
    "protocol_fingerprint",
    "read_prompts",
    "score",
]
