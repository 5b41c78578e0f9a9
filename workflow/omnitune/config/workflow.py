"""config/config.yaml: what the workflow runs."""

from typing import Annotated

from pydantic import Field

from omnitune.config.affects import NAMES, Affects
from omnitune.config.base import Section


class WorkflowConfig(Section):
    """What to run. Both lists can be replaced on the command line: `snakemake --config 'experiments=[...]'`."""

    experiments: Annotated[
        list[str],
        Field(
            min_length=1,
            description="Options files, one per experiment, relative to the project or absolute. "
            "An experiment's name is the `name` in its file.",
        ),
        NAMES,
    ]
    benchmarks: Annotated[
        list[str],
        Field(
            description="Benchmark files that every experiment is evaluated on, relative to the project or absolute. "
            "A benchmark's name is the stem of its file. Empty: no evaluation."
        ),
        NAMES,
    ] = []
    shards_url: Annotated[
        str | None,
        Field(
            pattern=r"^(s3|s3a|gs|gcs|az|abfs|hf)://[^\s@?]+$",
            description="Write tars to {shards_url}/{dataset}/ (`s3://bucket/folder` or another fsspec URL) instead of "
            "prepared/{dataset}/shards, where their index stays. Credentials come from the environment.",
        ),
        Affects("shards"),
    ] = None
