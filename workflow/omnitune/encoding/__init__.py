"""VAE posteriors and text features, stored once for all trainings."""

# Raise it when equal inputs leave another index of a group: the rule then makes them again. What is stored for a sample
# has a fingerprint of its own, see fingerprint.py.
FORMAT = 1
