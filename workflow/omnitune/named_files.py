"""What the files of the config name is read before any job, as far as it is there."""

from pathlib import Path

from omnitune.errors import ConfigError
from omnitune.evaluation.model_files import check_judge_models, check_labels
from omnitune.io.model_files.weights import read_weights_header
from omnitune.paths import starting_adapter_file
from omnitune.pretrained.files import check_named
from omnitune.pretrained.transformer import LARGEST, linear_layers, parameter_names, trained_layers
from omnitune.project import Project
from omnitune.validation.heldout import read_heldout_rows


def read_named_files(project: Project) -> None:
    """Reads of mixtures and prompts all that they say, of weights the headers; raises ConfigError or ValueError."""
    if project.store:
        project.store.require()
    for dataset, sources in project.sources.items():
        for source in sources:
            project.sample_files(dataset, source)
    for model in project.models:
        project.base_files(model)
        check_named(project.base_source(model))
    for name in project.experiments:
        project.starting_files(name)
        project.starting_adapter(name)
        _read_start(project, name)
    for name, benchmark in project.benchmarks.items():
        if name in project.foreign:
            project.prompt_sources(name)
        elif not project.drawn([benchmark.prompts]):
            project.prompts(name)
        project.labels(name)
        try:
            check_labels(benchmark)
            check_judge_models(benchmark)
        except ValueError as error:
            raise ConfigError(f"benchmark {name!r}: {str(error).removesuffix('.')}.") from None
        for baseline in benchmark.baselines:
            project.baseline_files(name, baseline)


def _read_start(project: Project, experiment: str) -> None:
    """The user's own files of an experiment, and by the names in files of weights, whether its formats can be made."""
    options, where = project.experiments[experiment], project.options_files[experiment]
    val = options.val
    try:
        if options.train.lora_path and not options.adapter_upstream:
            read_weights_header(starting_adapter_file(options.train.lora_path))
        if "extracted" in options.convert.formats:
            names = parameter_names(LARGEST)
            trained_layers(names, linear_layers(names), options.train.parameter_groups)
        used = val.data_path is not None and (val.validation_steps or val.train_visualization_steps)
        keys = options.data.instruction_keys
        if val.data_path is not None and used and not project.drawn([val.data_path]):
            read_heldout_rows(Path(val.data_path), max(val.max_samples, val.visualization_samples), keys)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
