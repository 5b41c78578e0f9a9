"""The columns of a validated sample, and which of them go on to manifests, tars and the index.

A new column of samples is a field of `ValidatedSample`, filled in by `omnitune.validation.source.check_line`. Where
training is to see it, it is a name in `CARRIED` and a field of `omnitune.sharding.index_row.IndexRow` as well: the
schemas of the files, the manifests and what stands in the tars follow from these.
"""

from dataclasses import dataclass

from omnitune.io.parquet import Int32, Int64, schema_of

CARRIED = ("key", "source", "task_type", "instruction", "text_tokens")  # as they are, up to the index
MANIFEST_KEYS = (*CARRIED, "input_images", "output_image", "bytes", "sha256")  # beside them, what shards are made of


@dataclass(frozen=True)
class ValidatedSample:
    """A row of samples.parquet; lists go over the images of a sample, its inputs and, last, its output.

    Attributes:
        source: its name in the mixture.
        file, line: where it stands, counted from 1.
        ordinal: over all files of the source, from 1.
        key: {source}_{ordinal:08d}.
        task_type: t2i, edit or ic.
        instruction: as written.
        text_tokens: of the instruction; None where tokens are not counted.
        input_images, output_image: paths or URLs.
        widths, heights: upright, in pixels.
        formats: as Pillow names them.
        bytes: sizes of the files.
        sha256: of the files' bytes, in hexadecimal; None at depth `header`.
        notes: what is unusual but usable.
    """

    source: str
    file: str
    line: Int64
    ordinal: Int64
    key: str
    task_type: str
    instruction: str
    text_tokens: Int32 | None
    input_images: list[str]
    output_image: str
    widths: list[Int32]
    heights: list[Int32]
    formats: list[str]
    bytes: list[Int64]
    sha256: list[str | None]
    notes: list[str]


SCHEMA = schema_of(ValidatedSample)
