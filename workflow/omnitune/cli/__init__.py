"""`omnitune <stage>`: every stage of the workflow as a command, with the same code as its rule.

One module for each family of commands. Models' libraries, which take seconds to import, are imported by the commands
that need them.
"""

from omnitune.cli.commands import app, main

__all__ = ["app", "main"]
