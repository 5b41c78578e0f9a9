"""The report of an experiment."""

# Raise it when equal inputs leave another page: the rule then makes them again.
FORMAT = 5
