"""VAE posteriors and text features, stored once for all trainings."""
