"""Formats that prompts are published in: a module for each, with its reader and the layout that its scorer reads.

Each is an entry of omnitune.config.choices.PROMPT_FORMATS. What they have in common is in `source` and `tables`.
"""
