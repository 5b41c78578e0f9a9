"""The report of an experiment."""

from omnitune.report.build import build_report
from omnitune.report.collect import BenchmarkEntry

__all__ = ["BenchmarkEntry", "build_report"]
