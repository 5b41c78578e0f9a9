"""What a training will take, before any GPU is used."""
