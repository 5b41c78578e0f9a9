"""Processes that work together: started, sharing a model, stopped."""
