"""Write down what a training is a function of, unless its checkpoints are of something else."""

from pathlib import Path

from omnitune.checkpoints.identity import identity_of, require_same
from omnitune.console import job
from omnitune.io.files import write_json
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]):
    project, name = Project.load(snakemake.config), snakemake.wildcards.experiment
    experiment = Experiment.of(project, name)
    files, output = experiment.training_files(), Path(snakemake.output.identity)
    identity = identity_of(experiment.options, files.base, files.transformer, files.index)
    require_same(experiment.options, identity, files.output, str(project.options_files[name]))
    write_json(output, identity)
