"""Conversion of training checkpoints to the published layout."""

from omnitune.conversion.export import CONVERSION_FILE, convert
from omnitune.conversion.read import read_checkpoint
from omnitune.conversion.verify import verify

__all__ = ["CONVERSION_FILE", "convert", "read_checkpoint", "verify"]
