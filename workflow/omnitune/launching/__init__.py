"""Starting a training: on one machine, on the nodes of a SLURM job, with a strategy that fits."""
