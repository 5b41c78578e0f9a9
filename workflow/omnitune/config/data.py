"""`data`: what is trained on, and what becomes of it on the way."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from omnitune.config.affects import NAMES, NOTHING, Affects, keys_affecting
from omnitune.config.base import PathOrUrl, PathText, PositiveInt, Probability, Section
from omnitune.config.choices import IMAGE_FORMATS, OneOf
from omnitune.config.urls import UrlOptions
from omnitune.paths import MAX_NAME_BYTES, file_stem, names_folder


def _number_of_limits(data: "DataOptions", value: int | list[int]) -> int | None:
    return len(value) if isinstance(value, list) else None


# Of manifests, which leave out what would have no pixels and may be cut by bytes. Of weights, too, where tars come out
# the same: the shift of the timesteps is by max_output_pixels, and held-out images are brought to the same limits as
# the training's.
IMAGE_LIMIT = Affects("manifests", "shards", "weights")
INPUT_LIMIT = Affects("manifests", "shards", "weights", samples=_number_of_limits)


class DataOptions(Section):
    """Data: what is trained on and how large it may be."""

    data_path: Annotated[
        PathText,
        Field(description="Mixture file (.yml). Its stem names the prepared data set, prepared/{stem}."),
        NAMES,
    ]
    instruction_keys: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            min_length=1,
            description="Keys of a row that its instruction is taken from: the first that has a text, as in "
            "`[instruction_long, instruction]`.",
        ),
        Affects("samples"),
    ] = ["instruction"]
    use_chat_template: Annotated[
        bool,
        Field(description="Wrap instructions in the text encoder's chat template, as the published model expects."),
        Affects("samples", "encodings", "weights"),
    ] = True
    maximum_text_tokens: Annotated[
        PositiveInt,
        Field(description="Instructions of more tokens, the chat around them included, are rejected."),
        Affects("samples", "encodings", "weights"),
    ] = 888
    prompt_dropout_prob: Annotated[
        Probability,
        Field(description="Probability of training a sample with the empty instruction."),
        Affects("weights"),
    ] = 0.0001
    ref_img_dropout_prob: Annotated[
        Probability,
        Field(description="Probability of dropping the references where the instruction was dropped."),
        Affects("weights"),
    ] = 0.5
    max_output_pixels: Annotated[
        int,
        Field(ge=256, description="Output images are shrunk to at most this many pixels (width x height)."),
        IMAGE_LIMIT,
    ] = 1048576
    max_input_pixels: Annotated[
        int | list[int],
        Field(
            description="The same for input images. A list: its k-th entry holds for samples with k inputs, "
            "the last one also for more."
        ),
        INPUT_LIMIT,
    ] = [1048576, 1048576, 589824, 262144]
    max_side_length: Annotated[
        int, Field(ge=16, description="No side of any image is longer than this, in pixels."), IMAGE_LIMIT
    ] = 2048
    max_reject_fraction: Annotated[
        Probability,
        Field(description="Validation fails when more than this share of the rows is rejected."),
        Affects("manifests"),
    ] = 0.01
    samples_per_shard: Annotated[
        PositiveInt,
        Field(description="Rows of a source that go into one tar."),
        Affects(manifests=lambda data, rows: None if data.shard_bytes else rows),
    ] = 1000
    shard_bytes: Annotated[
        PositiveInt | None,
        Field(description="Cut tars at about this many bytes instead of at samples_per_shard rows. null: by rows."),
        Affects("manifests"),
    ] = None
    validation_depth: Annotated[
        Literal["full", "header"],
        Field(
            description="`full` decodes and hashes every image; `header` reads sizes and formats from the first bytes "
            "only."
        ),
        Affects("samples"),
    ] = "full"
    max_image_pixels: Annotated[
        PositiveInt, Field(description="Images of more pixels are rejected as decompression bombs."), Affects("samples")
    ] = 178_956_970
    image_root: Annotated[
        PathOrUrl | None,
        Field(description="Reject images that do not lie below this folder or URL. null: they may lie anywhere."),
        Affects("samples"),
    ] = None
    source_root: Annotated[
        PathOrUrl | list[PathOrUrl] | None,
        Field(
            description="One or several folders or URLs, below which alone all that the mixture names may lie, links "
            "followed. null: below the working directory and the mixture's own folder, and at any URL."
        ),
        NOTHING,
    ] = None
    urls: UrlOptions = UrlOptions()
    image_format: Annotated[
        str,
        OneOf(IMAGE_FORMATS),
        Field(
            description="Format of images that had to be changed; others keep their bytes. jpeg is without subsampling."
        ),
        IMAGE_LIMIT,
    ] = "jpeg"
    image_quality: Annotated[int, Field(ge=1, le=100, description="Quality of jpeg and webp."), IMAGE_LIMIT] = 95
    encode: Annotated[
        bool,
        Field(
            description="Train from stored VAE posteriors and text features, encoded once by a stage of its own. "
            "false: training encodes each sample whenever it is drawn."
        ),
        Affects("weights"),
    ] = False
    encoded_precision: Annotated[
        Literal["bf16", "fp32"],
        Field(
            description="Precision of the text encoder in encoding, and of what is stored. The VAE computes in float32."
        ),
        Affects("encodings", weights=lambda data, precision: precision if data.encode else None),
    ] = "bf16"
    shards_per_encoding: Annotated[
        PositiveInt,
        Field(description="Tars that one encoding job takes, so that the models are loaded once for all."),
        Affects("groups"),
    ] = 16
    url_cache_mb: Annotated[
        int,
        Field(
            ge=0,
            description="Disk space of each node in MB, below cache_dir, that keeps what training has read from URLs.",
        ),
        NOTHING,
    ] = 10_000

    @field_validator("data_path")
    @classmethod
    def _stem_names_a_folder(cls, path: str) -> str:
        if not names_folder(file_stem(path)):  # `...yml` has the stem `..`
            raise ValueError(
                f"its stem {Path(path).stem!r} names folders; take letters, digits, `_`, `-` and `.` alone, one of the "
                f"first three at its beginning, and at most {MAX_NAME_BYTES} bytes"
            )
        return path

    @field_validator("max_input_pixels")
    @classmethod
    def _limits_are_positive(cls, value: int | list[int]) -> int | list[int]:
        limits = value if isinstance(value, list) else [value]
        if not limits or min(limits) < 256:
            raise ValueError("needs one limit or a list of limits, each at least 256 pixels")
        return value

    @property
    def source_roots(self) -> list[str] | None:
        """Below which sources may lie; None for the usual places."""
        return [self.source_root] if isinstance(self.source_root, str) else self.source_root

    @property
    def dataset(self) -> str:
        """Name of the prepared data set."""
        return file_stem(self.data_path)

    @property
    def image_limits(self) -> dict[str, Any]:
        """What becomes of images in shards: the arguments of `omnitune.images.prepare.ImageLimits`."""
        return keys_affecting(self, "shards")
