"""Instructions: the chat that they stand in, and their features."""
