"""Checkpoints of a training: what one is of, saving and loading, and which there are."""
