"""Evaluation: prompts, images, measures."""
