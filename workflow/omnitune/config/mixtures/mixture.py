"""Mixture files: which sources a data set consists of and at which ratio, in the published format."""

from typing import Annotated, Literal

from pydantic import Field

from omnitune.config.affects import NAMES, NOTHING, Affects
from omnitune.config.base import PathOrUrl, Section

INSIDE = "inside_ratio"


class MixtureEntry(Section):
    """One source of a mixture."""

    path: Annotated[
        PathOrUrl,
        Field(
            description="A .jsonl file of samples or its URL, a further .yml mixture, or a folder or a pattern "
            "(`captions/*.jsonl`), of which all .jsonl files are one source. "
            "A relative path is taken from the working directory, and if nothing is there, from the folder of this "
            "file."
        ),
        NAMES,
    ]
    type: Annotated[
        str,
        Field(description="A name for the kind of samples; used in reports only. Each sample's task_type decides."),
        NOTHING,
    ] = "default"
    ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            allow_inf_nan=False,
            description="Share of the source among its neighbours; normalised to sum to 1, multiplied along nested "
            "files. 0 leaves the source out.",
        ),
        Affects("weights"),
    ] = 1.0


class Mixture(Section):
    """A mixture file."""

    ratio_type: Annotated[
        Literal["outside_ratio", "inside_ratio"] | None,
        Field(
            description="`outside_ratio`, as null: ratios are shares of the mixture. `inside_ratio`: shares of each "
            "entry's own rows, which are counted whenever the file is read."
        ),
        Affects("weights"),
    ] = None
    data: Annotated[list[MixtureEntry], Field(min_length=1, description="The sources of the mixture.")]
