"""What is wrong here, before a job waits for hours: this machine, the project, SLURM, the nodes of an allocation."""
