"""What several tests need: tiny models, projects, trainings, pictures, a SLURM, a network."""
