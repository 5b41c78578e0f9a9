"""Which rows of the data can be trained on, and a ledger of those that cannot."""
