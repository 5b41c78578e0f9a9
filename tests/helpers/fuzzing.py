"""How long readers are tried with made-up bytes: seconds in the suite, as long as `make fuzz` says there."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("OMNITUNE_FUZZ_EXAMPLES", "0"))
# In the suite the same examples each time; `make fuzz` looks for others.
FUZZ = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some bytes changed, taken out, put in, or its end cut off or replaced."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.one_of(st.integers(0, 200), st.integers(0, len(data))))
        stop = start + draw(st.sampled_from([0, 1, 1, 2, 4, 64, 10_000]))
        data[start:stop] = draw(st.binary(max_size=8))
    return bytes(data)
