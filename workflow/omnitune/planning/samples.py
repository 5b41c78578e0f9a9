"""What a plan knows of the samples: those of the shards, or, before there are any that fit, the largest that may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnitune.config.data import DataOptions
from omnitune.config.mixtures.sources import Source
from omnitune.flops import PIXELS_PER_TOKEN
from omnitune.images.prepare import ImageLimits
from omnitune.images.resize import target_size
from omnitune.sharding.digests import read_limits
from omnitune.sharding.index import ShardIndex
from omnitune.validation.row import MAX_INPUT_IMAGES, TASK_TYPES

SIZES = ("max_output_pixels", "max_input_pixels", "max_side_length")  # the limits that say how large images are
INPUTS = {"t2i": 0, "edit": 1}  # reference images by the type that a mixture names; of any other type, the most


@dataclass(frozen=True)
class AssumedRow:
    """A sample as large as the options allow; the names are those of an index's row."""

    widths: list[int]
    heights: list[int]
    text_tokens: None = None

    @property
    def output_tokens(self) -> int:
        """Of the output image."""
        return self.widths[-1] * self.heights[-1] // PIXELS_PER_TOKEN

    @property
    def input_tokens(self) -> int:
        """Of all references."""
        pairs = zip(self.widths[:-1], self.heights[:-1], strict=True)
        return sum(width * height // PIXELS_PER_TOKEN for width, height in pairs)


class AssumedSamples:
    """Samples that nobody has looked at yet: square images at the limits of the options.

    Args:
        data: options.
        sources: of the mixture.
        counts: samples of each source; None where that is not known.
        reason: why it is not the shards that are planned from.
    """

    def __init__(
        self, data: DataOptions, sources: Sequence[Source], counts: Mapping[str, int | None], reason: str
    ) -> None:
        self.counts, self.reason = counts, reason
        limits = ImageLimits.from_keys(data.image_limits)
        self._rows = {source.name: _largest(limits, source.type) for source in sources}

    def sizes(self, sources: Sequence[str]) -> list[int]:
        """Number of samples of each source; 1 where it is not known, as all are alike."""
        return [self.counts[name] or 1 for name in sources]

    def row(self, source: str, number: int) -> AssumedRow:
        """A sample; all of a source are the same."""
        return self._rows[source]


def _largest(limits: ImageLimits, kind: str) -> AssumedRow:
    """A sample with as many references as its kind has, or as take most tokens."""

    def sides(inputs: int) -> list[int]:
        pixels = [limits.input_limit(inputs)] * inputs + [limits.max_output_pixels]
        return [target_size(side := int(most**0.5), side, most, limits.max_side_length)[0] for most in pixels]

    inputs = INPUTS.get(TASK_TYPES.get(kind, ""))
    if inputs is None:
        inputs = max(range(1, MAX_INPUT_IMAGES + 1), key=lambda number: sum(side**2 for side in sides(number)))
    return AssumedRow(sides(inputs), sides(inputs))


def planned_samples(
    data: DataOptions, sources: Sequence[Source], index: Path, asked: bool
) -> ShardIndex | AssumedSamples:
    """The shards of an index where they fit the options, otherwise samples at their limits.

    Args:
        data: options.
        sources: of the mixture.
        index: of the shards.
        asked: whether somebody has named it.

    Raises:
        ValueError: where the index cannot be read, or is named and not there.
    """
    if not index.is_file():
        if asked:
            raise ValueError(
                f"--index: {index} is not there. Name the index.parquet of shards, or leave the option out."
            )
        counts = {source.name: _lines(source) for source in sources}
        return AssumedSamples(data, sources, counts, f"there are no shards yet ({index})")
    shards = ShardIndex.load(index)
    reason = _difference(data, sources, index, shards)
    if not reason:
        return shards
    known = set(shards.sources)
    counts = {s.name: shards.sizes([s.name])[0] if s.name in known else _lines(s) for s in sources}
    return AssumedSamples(data, sources, counts, reason)


def _difference(data: DataOptions, sources: Sequence[Source], index: Path, shards: ShardIndex) -> str:
    """Why shards are not those of the options; empty where they are, or do not say what they were made with."""
    missing = [source.name for source in sources if source.name not in shards.sources]
    if missing:
        return f"{index} has no samples of {', '.join(map(repr, missing))}"
    made, asked = read_limits(index), data.image_limits
    differing = [key for key in SIZES if made is not None and made.get(key) != asked[key]]
    values = "; ".join(f"data.{key}: {made[key]} there, {asked[key]} in the options" for key in differing if made)
    return f"{index} was made under other limits ({values})" if differing else ""


def _lines(source: Source) -> int | None:
    """Lines of a source's files that are not empty; None where one of them is not here."""
    if not all(isinstance(file, Path) and file.is_file() for file in source.files):
        return None
    total = 0
    for file in source.files:
        with Path(file).open("rb") as lines:
            total += sum(1 for line in lines if line.strip())
    return total or None
