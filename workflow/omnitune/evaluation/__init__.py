"""Images of held-out prompts, and their scores."""

# Raise it when equal inputs leave another protocol.json or scoring.json: the rule then makes them again.
PROTOCOL_FORMAT = 1
# Raise it when equal inputs leave other images, losses or rows of them: the rule then makes them again.
IMAGES_FORMAT = 2
# Raise it when equal inputs leave other scores: the rule then makes them again.
SCORES_FORMAT = 4
