"""The report of an experiment, and comparisons of several."""

# Raise it when equal inputs leave another page: the rule then makes them again.
FORMAT = 9
