"""Encode a group of shards on the GPUs of this job, or on its CPU."""

from pathlib import Path

from omnitune.console import job
from omnitune.distributed.gpus import reserved_gpus
from omnitune.distributed.processes import Topology
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]), reserved_gpus(snakemake.resources.gpus_per_node):
    project, wildcards = Project.load(snakemake.config), snakemake.wildcards
    experiment = Experiment.of(project, project.encoder(wildcards.dataset, wildcards.model))
    shards = [Path(path).parents[1] / f"{Path(path).stem}.parquet" for path in snakemake.input.digests]
    processes = max(snakemake.resources.gpus_per_node, 1)
    topology = Topology(processes, threads_per_process=max(snakemake.threads // processes, 1))
    experiment.encode(shards, topology, project.store)
