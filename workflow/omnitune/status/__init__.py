"""What runs, from the files that are there: how far each experiment is, and what its jobs do."""
