"""config/config.yaml: what the workflow runs."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from omnitune.config.affects import NAMES, NOTHING, Affects
from omnitune.config.base import PathText, PositiveInt, Section


class Sweep(Section):
    """Variants of one experiment, and a comparison of them."""

    options: Annotated[
        PathText, Field(description="Options file that the variants are of; alone, it is not run."), NAMES
    ]
    set: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1)]],
        Field(
            min_length=1,
            description="Values by key of the options (`train.learning_rate: [1e-5, 3e-5]`): an experiment for each, "
            "`{name}-learning_rate-1e-05`. Of several keys, one for each combination.",
        ),
        NAMES,
    ]


class Cluster(Section):
    """What jobs may ask a cluster for, and what a training takes of it; on a single machine but `nodes` of no meaning.

    A site's values stand in the profile, workflow/profiles/slurm/site.yaml.
    """

    nodes: Annotated[
        PositiveInt | None,
        Field(
            description="Nodes of each training on a cluster. Without it as few as have a GPU (`gpus_per_node`) for "
            "each of its processes; one where there are no GPUs."
        ),
        NOTHING,
    ] = None
    gpus_per_node: Annotated[
        int,
        Field(ge=0, description="GPUs of a cluster's node that a job may ask for. 0: all is computed on CPUs."),
        NOTHING,
    ] = 0
    gpu_type: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9_.]+$", description="Type of GPU to ask for, as `sinfo -o %G` names it."),
        NOTHING,
    ] = None
    cpus_per_node: Annotated[
        PositiveInt | None,
        Field(description="CPUs of a cluster's node: the most threads that a job asks for."),
        NOTHING,
    ] = None
    max_runtime: Annotated[
        PositiveInt | None,
        Field(
            description="The cluster's time limit in minutes. A training that takes longer saves and goes on in a new "
            "job."
        ),
        NOTHING,
    ] = None
    save_seconds: Annotated[
        PositiveInt, Field(description="How long before its time is up SLURM tells a training to save."), NOTHING
    ] = 300
    gpu_partition: Annotated[
        str | None, Field(description="SLURM partition of jobs with GPUs. Without it the one of all jobs."), NOTHING
    ] = None
    download_partition: Annotated[
        str | None,
        Field(
            description="SLURM partition whose nodes reach the internet, for prepare_pretrained. Without it base "
            "models are downloaded where snakemake runs."
        ),
        NOTHING,
    ] = None

    def nodes_for(self, processes: int) -> int:
        """Nodes of a training of so many processes, as many on each; raises ValueError where none are."""
        if self.nodes is None:
            per_node = self.gpus_per_node or processes
            return next(n for n in range(1, processes + 1) if processes % n == 0 and processes // n <= per_node)
        if processes % self.nodes:
            raise ValueError(f"nodes: {self.nodes} is not allowed: {processes} processes cannot be spread equally")
        if self.gpus_per_node and processes // self.nodes > self.gpus_per_node:
            raise ValueError(
                f"nodes: {self.nodes} is not allowed: with gpus_per_node: {self.gpus_per_node} they have GPUs for "
                f"{self.nodes * self.gpus_per_node} processes, not for {processes}"
            )
        return self.nodes


class WorkflowConfig(Cluster):
    """What to run. Each key can be replaced on the command line: `snakemake --config 'experiments=[..]' sweep=`."""

    experiments: Annotated[
        list[PathText],
        Field(
            description="Options files, one per experiment, relative to the project or absolute. "
            "An experiment's name is the `name` in its file.",
        ),
        NAMES,
    ] = []
    benchmarks: Annotated[
        list[PathText],
        Field(
            description="Benchmark files that every experiment is evaluated on, relative to the project or absolute. "
            "A benchmark's name is the stem of its file. Empty: no evaluation."
        ),
        NAMES,
    ] = []
    sweep: Sweep | None = Field(
        None,
        description="Variants of one experiment beside them, which share data, encodings and the base's evaluation.",
    )
    reports: Annotated[
        dict[str, Annotated[list[str], Field(min_length=2)]],
        Field(
            description="Comparisons by name: experiments, each by its own name, side by side in comparisons/{name}/. "
            "`lora_or_all: [mine, mine_lora]`."
        ),
        NAMES,
    ] = {}
    shards_url: Annotated[
        str | None,
        Field(
            pattern=r"^(s3|s3a|gs|gcs|az|abfs|hf)://[^\s@?]+$",
            description="Write tars to {shards_url}/{dataset}/ (`s3://bucket/folder` or another fsspec URL) instead of "
            "prepared/{dataset}/shards, where their index stays. Credentials come from the environment.",
        ),
        Affects("shards"),
    ] = None
    store: Annotated[
        PathText | None,
        Field(
            description="Folder that projects share, which exists. Tars and encodings are taken from there where one "
            "was made of the same samples, limits and models, and put there where not."
        ),
        NOTHING,
    ] = None

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if not self.experiments and self.sweep is None:
            raise ValueError("experiments: names nothing to run; name an options file, or set a sweep")
        return self
