"""Groups of shards that are encoded by one job: consecutive shard numbers of a source. Imports nothing heavy."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from omnitune.paths import group_name, parse_shard

GROUPS = "groups"  # folder of the groups' indexes, in that of an encoding


def group_shards(shards: Iterable[Path], shards_per_encoding: int) -> dict[tuple[str, int], list[Path]]:
    """Shards by (source, number of the group), in order; a group is `shards_per_encoding` consecutive numbers."""
    groups: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for shard in sorted(shards, key=parse_shard):
        source, number = parse_shard(shard)
        groups[source, number // shards_per_encoding].append(shard)
    return dict(groups)


def group_path(folder: Path, source: str, group: int) -> Path:
    """The index of a group in the folder of an encoding."""
    return folder / GROUPS / f"{source}-{group_name(group)}.parquet"
