"""Encode a group of shards on the GPUs of this job, or on its CPU."""

from pathlib import Path

from omnitune.console import job
from omnitune.distributed.processes import Topology
from omnitune.encoding.encode import EncodingFiles, encode
from omnitune.project import Project

with job(snakemake.log[0]):
    options, config = Project.load(snakemake.config).encoding(snakemake.wildcards.dataset, snakemake.wildcards.model)
    files = EncodingFiles(
        config=config, base=Path(snakemake.input.base).parent, output=Path(snakemake.output.index).parents[1]
    )
    shards = [Path(path).parents[1] / f"{Path(path).stem}.parquet" for path in snakemake.input.digests]
    processes = max(snakemake.resources.gpus_per_node, 1)
    encode(options, files, shards, Topology(processes, threads_per_process=max(snakemake.threads // processes, 1)))
