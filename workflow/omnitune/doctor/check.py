"""All checks, in the order in which a person reads them."""

from collections.abc import Iterator
from pathlib import Path

from omnitune.config.yaml_file import read_yaml
from omnitune.doctor.findings import Finding
from omnitune.doctor.machine import check_config, check_disk, check_file_system, check_gpus, check_packages
from omnitune.doctor.nodes import check_nodes
from omnitune.doctor.slurm import check_slurm
from omnitune.project import Project


def check_all(config: Path, site: Path | None) -> Iterator[Finding]:
    """What is found, as it is found.

    Args:
        config: the workflow's.
        site: the file of the profile that says what a cluster has, whose keys go over the config's.
    """
    yield from check_packages()
    yield from check_gpus()
    yield from check_disk()
    yield from check_file_system()
    try:
        content = {**read_yaml(config), **(read_yaml(site) if site else {})}
        project = Project.load(content, str(config))
    except (ValueError, OSError) as error:
        yield Finding("problem", str(config), str(error))
    else:
        yield from check_config(config, project)
        yield from check_slurm(project)
    yield from check_nodes()
