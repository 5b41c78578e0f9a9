"""The transformer: its blocks, attention within packed sequences, positions, caches over the steps."""
