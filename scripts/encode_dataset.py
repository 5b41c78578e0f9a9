"""Encode a group of shards on the GPUs of this job, or on its CPU."""

from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.console import job
from omnitune.data.encode import EncodingFiles, encode
from omnitune.launcher import Topology

with job(snakemake.log[0]):
    files = EncodingFiles(
        config=Path(snakemake.input.options),
        base=Path(snakemake.input.base).parent,
        output=Path(snakemake.output.index).parents[1],
    )
    processes = max(snakemake.resources.gpus_per_node, 1)
    encode(
        ExperimentOptions.load(files.config),
        files,
        [Path(path) for path in snakemake.input.shards],
        Topology(processes, threads_per_process=max(snakemake.threads // processes, 1)),
    )
