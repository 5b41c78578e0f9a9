"""The other ways into the workflow: workflow/Snakefile, and a `module` of a Snakefile in another folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.workplace import Workplace, count_jobs

pytestmark = pytest.mark.workflow

MODULE = """\
configfile: "config/config.yaml"


module omnitune:
    snakefile:
        "{home}/workflow/Snakefile"
    config:
        config


use rule * from omnitune
"""


@pytest.fixture(scope="module")
def fresh(new_workplace: Callable[[str], Workplace]) -> Workplace:
    """A fresh copy, whose package says where it is imported from."""
    place = new_workplace("entry_points")
    with (place.root / "workflow/omnitune/__init__.py").open("a") as package:
        package.write('\nprint(f"imported {__file__}")\n')
    return place


@pytest.fixture(scope="module")
def plain(fresh: Workplace) -> dict[str, int]:
    return planned(fresh, fresh)


def planned(place: Workplace, home: Workplace, *arguments: str) -> dict[str, int]:
    """The jobs of a dry run, which has imported the package of `home`."""
    output = place.snakemake("--dry-run", *arguments)
    package = home.root / "workflow/omnitune/__init__.py"
    assert f"imported {package}" in output, "the package stands beside the rules, wherever Snakemake was started"
    return count_jobs(output)


def test_the_snakefile_in_the_workflow_folder_plans_the_same(fresh: Workplace, plain: dict[str, int]) -> None:
    assert plain["train_experiment"] == 2
    assert planned(fresh, fresh, "--snakefile", "workflow/Snakefile") == plain


def test_a_module_of_another_snakefile_plans_the_same(fresh: Workplace, plain: dict[str, int], tmp_path: Path) -> None:
    other = Workplace(tmp_path)
    shutil.copytree(fresh.root / "config", other.root / "config")
    (other.root / "Snakefile").write_text(MODULE.format(home=fresh.root))
    assert planned(other, fresh) == plain
    assert set(planned(other, fresh, "shard")) < set(plain), "target rules come with it"
