"""Conversion of training checkpoints to the published layout."""

# Raise it when equal inputs leave other weights or another conversion.json: the rule then makes them again.
FORMAT = 5
