"""The report of an experiment, and the comparison of a sweep's variants."""

# Raise it when equal inputs leave another page: the rule then makes them again.
FORMAT = 6
