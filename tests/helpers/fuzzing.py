"""How long readers are tried with made-up bytes: seconds in the suite, as long as `make fuzz` says there."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("OMNITUNE_FUZZ_EXAMPLES", "0"))
# In the suite the same examples each time; `make fuzz` looks for others.
FUZZ = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
