"""Mixing files: entries, the sources that they come to, files of samples."""
