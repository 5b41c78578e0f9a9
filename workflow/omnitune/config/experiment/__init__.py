"""Options files: an experiment's sections, what it starts from, and its variants."""
