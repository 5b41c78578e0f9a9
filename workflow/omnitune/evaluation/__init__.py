"""Images of held-out prompts, and their scores."""

# Raise it when equal files of a published format leave other prompts of ours: the rule then makes them again.
IMPORT_FORMAT = 1
# Raise it when equal inputs leave another protocol.json or scoring.json: the rule then makes them again.
PROTOCOL_FORMAT = 2
# Raise it when equal inputs leave other images, losses or rows of them: the rule then makes them again.
IMAGES_FORMAT = 3
# Raise it when equal inputs leave other judgements: the rule then makes them again, from the answers that are kept.
JUDGEMENTS_FORMAT = 1
# Raise it when equal inputs leave other scores: the rule then makes them again.
SCORES_FORMAT = 7
# Raise it when equal images are laid out in another way for their scorer: the rule then writes them again.
EXPORT_FORMAT = 1
