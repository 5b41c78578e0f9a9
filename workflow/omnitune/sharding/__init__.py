"""WebDataset tars under the pixel limits, and the index of what lies where."""
