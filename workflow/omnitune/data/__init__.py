"""Data: mixtures, validation, shards, and the loader that training reads them by."""
