"""The base model's pipeline folder."""

# Raise it when equal sources leave other files: the rule then makes them again.
FORMAT = 2
