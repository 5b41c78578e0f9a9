"""Benchmark files: a protocol, its measures and its judges."""
