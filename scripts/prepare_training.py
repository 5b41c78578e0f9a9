"""Write down what a training is a function of, unless its checkpoints are of something else."""

from pathlib import Path

from omnitune.console import job
from omnitune.io.files import write_json
from omnitune.project import Project
from omnitune.training.identity import identity_of, require_same

with job(snakemake.log[0]):
    project, name = Project.load(snakemake.config), snakemake.wildcards.experiment
    options, start, output = project.experiments[name], project.starts[name], Path(snakemake.output.identity)
    identity = identity_of(options, start.base, start.transformer, Path(snakemake.input.index))
    require_same(options, identity, output.parent, str(project.options_files[name]))
    write_json(output, identity)
