"""Adapters: made, put into a model, saved and read in the names of other tools."""
