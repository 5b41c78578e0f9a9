"""`omnitune shard` and `omnitune encode`: from validated samples to what a training reads."""

from pathlib import Path
from typing import Annotated

from omnitune.cli.options import (
    CPUS,
    INPUT_PIXELS,
    OUTPUT_PIXELS,
    SIDE_LENGTH,
    Base,
    Config,
    Index,
    InputPixels,
    OutputPixels,
    PrivateNetworks,
    SideLength,
    input_limits,
    option,
)
from omnitune.config.choices import IMAGE_FORMATS
from omnitune.paths import INDEX
from omnitune.stages import Experiment


def shard(
    validated: Annotated[Path, option("validated", "Folder that `omnitune validate` wrote.")],
    output: Annotated[Path, option("output", "Folder for the tars, their indexes, index.parquet and index.arrow.")],
    max_output_pixels: OutputPixels = OUTPUT_PIXELS,
    max_input_pixels: InputPixels = INPUT_PIXELS,
    max_side_length: SideLength = SIDE_LENGTH,
    image_format: Annotated[
        str,
        option(
            "image_format",
            "Format of images that have to be changed; others keep their bytes.",
            metavar=f"<{'|'.join(IMAGE_FORMATS)}>",
        ),
    ] = "jpeg",
    image_quality: Annotated[int, option("image_quality", "Quality of jpeg and webp.", min=1, max=100)] = 95,
    tars: Annotated[
        str | None, option("tars", "URL to write the tars below, instead of into OUTPUT (s3://bucket/folder).")
    ] = None,
    image_root: Annotated[
        str | None, option("image_root", "As it was validated with: URL below which redirects of images must stay.")
    ] = None,
    private_network: PrivateNetworks = None,
    workers: Annotated[int, option("workers", "Processes.", min=1)] = CPUS,
) -> None:
    """Write validated samples into WebDataset tars under the pixel limits, and index them."""
    from omnitune.config.urls import with_networks
    from omnitune.sharding.shard import ImageLimits, shard_dataset

    limits = ImageLimits(
        max_output_pixels, input_limits(max_input_pixels), max_side_length, image_format, image_quality
    )
    urls = with_networks(private_network)
    shard_dataset(validated, output, limits, workers=workers, tars=tars, urls=urls, image_root=image_root)


def encode(
    config: Config,
    num_processes: Annotated[
        int, option("num_processes", "Processes. 0: one for each GPU of this machine, or one without any.")
    ] = 0,
    num_threads: Annotated[
        int, option("num_threads", "CPU threads of each process. 0: all of the machine's, shared.")
    ] = 0,
    base: Base = None,
    index: Index = None,
    output: Annotated[
        Path | None, option("output", "Folder to write, if not prepared/{dataset}/encoded/{model}.")
    ] = None,
) -> None:
    """Encode the shards of an experiment's data set, but for those that are encoded already."""
    import torch

    from omnitune.distributed.processes import Topology
    from omnitune.encoding.encode import encode_dataset

    experiment = Experiment.alone(config)
    processes = num_processes or torch.cuda.device_count() or 1
    threads = num_threads or max(CPUS // processes, 1)
    files = experiment.encoding_files(base=base, output=output)
    topology = Topology(processes, threads_per_process=threads)
    encode_dataset(experiment.options, files, index or experiment.path(INDEX), topology)
