"""WebDataset tars under pixel limits, and the index of a data set."""

# Raise it when equal inputs leave other tars, or tables beside them: the rule then makes them again.
FORMAT = 4
# Raise it when equal inputs leave another index of the tars: the rule then makes them again.
INDEX_FORMAT = 3
