"""config/config.yaml: what the workflow runs."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from omnitune.config.affects import NAMES, Affects
from omnitune.config.base import Section


class Sweep(Section):
    """Variants of one experiment, and a comparison of them."""

    options: Annotated[str, Field(description="Options file that the variants are of; alone, it is not run."), NAMES]
    set: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1)]],
        Field(
            min_length=1,
            description="Values by key of the options (`train.learning_rate: [1e-5, 3e-5]`): an experiment for each, "
            "`{name}-learning_rate-1e-05`. Of several keys, one for each combination.",
        ),
        NAMES,
    ]


class WorkflowConfig(Section):
    """What to run. Each key can be replaced on the command line: `snakemake --config 'experiments=[..]' sweep=`."""

    experiments: Annotated[
        list[str],
        Field(
            description="Options files, one per experiment, relative to the project or absolute. "
            "An experiment's name is the `name` in its file.",
        ),
        NAMES,
    ] = []
    benchmarks: Annotated[
        list[str],
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

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if not self.experiments and self.sweep is None:
            raise ValueError("experiments: names nothing to run; name an options file, or set a sweep")
        return self
