"""Pictures: what a file holds, whether it can be trained on, and how it is brought to size."""
