"""Groups of shards that are encoded by one job: consecutive shard numbers of a source. Imports nothing heavy."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

SETTINGS = {"encoded_precision", "use_chat_template", "maximum_text_tokens"}  # of `data`: what an encoding depends on
GROUPS = "groups"  # folder of the groups' indexes, in that of an encoding


def shard_name(shard: Path) -> tuple[str, int]:
    """Source and number of a shard, from a file that is named after it: {source}-{shard}.parquet, .tar or .jsonl."""
    source, _, number = shard.stem.rpartition("-")
    return source, int(number)


def grouped(shards: Iterable[Path], shards_per_encoding: int) -> dict[tuple[str, int], list[Path]]:
    """Shards by (source, number of the group), in order; a group is `shards_per_encoding` consecutive numbers."""
    groups: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for shard in sorted(shards, key=shard_name):
        source, number = shard_name(shard)
        groups[source, number // shards_per_encoding].append(shard)
    return dict(groups)


def group_path(folder: Path, source: str, group: int) -> Path:
    """The index of a group in the folder of an encoding."""
    return folder / GROUPS / f"{source}-{group:04d}.parquet"
