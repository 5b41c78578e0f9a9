"""The training loop and what it needs."""

# Raise it when trainings can no longer go on from the checkpoints that earlier versions have left: the rule then trains
# again.
FORMAT = 1
