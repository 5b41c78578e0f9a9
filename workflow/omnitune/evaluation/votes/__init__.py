"""People who choose between images: the page that they see, and what their votes come to."""
