"""The columns of the index over all shards."""

from dataclasses import dataclass, field

from omnitune.io.parquet import Int32, Int64, schema_of


@dataclass(frozen=True)
class IndexRow:
    """One sample's row of the index; lists hold the input images and, last, the output image.

    Attributes:
        source, key, task_type, instruction: as validated.
        shard: number of its shard, from 0.
        tar: name of the tar beside the index, or its URL.
        json_offset, json_size: place of {key}.json in the tar, in bytes.
        image_offsets, image_sizes: the same of the images.
        widths, heights: of the images in the tar, in pixels.
        output_tokens, input_tokens: patches of 16 x 16 pixels of the output, and of all inputs.
        text_tokens: of the instruction; None where tokens were not counted.
        sha256: over the sample's members, in hexadecimal.
        tar_bytes, tar_sha256: size and hash of the tar.
    """

    source: str
    shard: Int32
    key: str
    task_type: str
    instruction: str
    tar: str
    json_offset: Int64
    json_size: Int64
    image_offsets: list[Int64]
    image_sizes: list[Int64]
    widths: list[Int32]
    heights: list[Int32]
    output_tokens: Int32
    input_tokens: Int32
    text_tokens: Int32 | None = field(default=None, kw_only=True)  # the only one that an index may lack
    sha256: str
    tar_bytes: Int64
    tar_sha256: str

    @property
    def span(self) -> tuple[int, int]:
        """Where the sample's members lie in the tar, first byte and number of bytes; they follow one another."""
        end = self.image_offsets[-1] + self.image_sizes[-1]
        return self.json_offset, end - self.json_offset


INDEX_SCHEMA = schema_of(IndexRow)
