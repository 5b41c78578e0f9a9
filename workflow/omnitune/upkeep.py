"""Experiments renamed and removed, with what Snakemake keeps of them in .snakemake."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omnitune.checkpoints.states import newest_state, removal_of, remove
from omnitune.config.experiment.options import NAME
from omnitune.io.files import is_whole, json_line, remove_tree, sealed, write_text
from omnitune.io.json_object import parse_json
from omnitune.paths import EXPERIMENT, GENERATIONS_FILE, SCORES_FILE, VARIANT, parse_converted
from omnitune.project import Project
from omnitune.records import INCOMPLETE, METADATA, is_locked, list_records, record_path
from omnitune.training.inputs import lock_experiment

logger = logging.getLogger("omnitune")


def rename_experiment(project: Project, old: str, new: str) -> None:
    """Gives an experiment another name, and all that it has made the place that belongs to it.

    What names that place is changed with it: sealed scores are sealed again where they were whole, Snakemake's records
    follow, times stay. The report is left to be built again. A folder that was moved by hand is taken over.

    Raises:
        ValueError: for a name that is not allowed or taken, an experiment that is not there, is being trained, is a
            variant of a sweep, or is what another was trained from, and while Snakemake runs.
    """
    source, target = (Path(EXPERIMENT.format(experiment=name)) for name in (old, new))
    _require_names(old, new)
    moved = not source.exists() and target.is_dir()  # by hand
    if not moved:
        _require_there(source)
        if target.exists() or new in project.experiments:
            raise ValueError(
                f"{new!r} is the name of another experiment ({target}). Remove that first, or take another."
            )
    _require_free(project, old, "renamed")
    with lock_experiment(target if moved else source):
        pass
    if not moved:
        source.rename(target)
    _rename_in_files(target, old, new)
    remove_tree(target / "report")
    _move_records(old, new)
    logger.info("%s is now %s; its report is built again by the next run", source, target)
    _rename_in_config(project, old, new)


def remove_experiment(project: Project, name: str) -> None:
    """Removes an experiment's folder, and what Snakemake knows of it.

    Raises ValueError for one that is not there, is being trained, or is what another was trained from, and while
    Snakemake runs.
    """
    _require_names(name)
    folder = Path(EXPERIMENT.format(experiment=name))
    half_gone = not folder.exists() and removal_of(folder).is_dir()  # a removal was killed
    if not half_gone:
        _require_there(folder)
    _require_free(project, name, "removed")
    if not half_gone:
        with lock_experiment(folder):
            pass
    place = removal_of(folder) if half_gone else folder
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    remove(folder)
    _move_records(name, None)
    logger.info("removed %s (%.1f MB)", folder, size / 1e6)
    if name in project.experiments:
        logger.warning("%s still asks for it: the next run trains it anew", project.options_files[name])
    borrowers = [
        other
        for other in project.experiments
        if other != name and any(owner == name for owner, _ in project.evaluations(other).values())
    ]
    if borrowers:
        logger.warning(
            "what %s shares with it, the base or a baseline, was evaluated there; it is drawn again",
            ", ".join(borrowers),
        )


def _require_names(*names: str) -> None:
    """Raises ValueError for what is no name of an experiment, such as a path out of experiments/."""
    for name in names:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{name!r} is not allowed as a name: take letters, digits, `_`, `.` and `-`.")


def _require_there(folder: Path) -> None:
    if not folder.is_dir():
        known = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        raise ValueError(f"{folder}: there is no such experiment; known: {', '.join(known) or 'none'}.")


def _require_free(project: Project, name: str, verb: str) -> None:
    """Raises ValueError where something holds on to an experiment's name."""
    if is_locked():
        raise ValueError("Snakemake is running here, or was killed (then: snakemake --unlock). Wait for it.")
    if name in project.variants and verb == "renamed":
        raise ValueError(
            f"{name} is a variant of the sweep of {project.options_files[name]}, and named after its values. To keep "
            "it under another name, write an options file of its own, which extends that one, and take it out of the "
            "sweep."
        )
    listed = [report for report, experiments in project.reports.items() if name in experiments]
    if listed:
        raise ValueError(f"{name}: reports.{listed[0]} of the workflow's config compares it. Take it out there first.")
    if name == project.swept and verb == "renamed":
        raise ValueError(
            f"{name} is what the variants of the sweep are named after: by another name, all {len(project.variants)} "
            "of them would be trained anew. Take the sweep out of the config first."
        )
    followers = sorted({*_trained_from(name), *_configured_from(project, name)} - {name})
    if followers:
        raise ValueError(
            f"experiments/{name} cannot be {verb}: its weights are what {', '.join(followers)} starts from, and by "
            f"this name. Remove {'these' if len(followers) > 1 else 'that one'} first, and take it out of "
            "`experiments`."
        )


def _trained_from(name: str) -> Iterator[str]:
    """Experiments that have checkpoints which say that they were trained from this one."""
    for folder in sorted(Path(EXPERIMENT.format(experiment=name)).parent.glob("*")):
        state = newest_state(folder)
        options = state.identity["options"] if state else {}
        starts = [parse_converted(options.get(key)) for key in ("model.pretrained_model_path", "train.lora_path")]
        if any(start and start[0] == name for start in starts):
            yield folder.name


def _configured_from(project: Project, name: str) -> Iterator[str]:
    for other, options in project.experiments.items():
        if any(start and start[0] == name for start in (options.model.upstream, options.adapter_upstream)):
            yield other


def _rename_in_config(project: Project, old: str, new: str) -> None:
    """Changes the name in the options file, and says so; says what to do where that is not possible."""
    file = project.options_files.get(old)
    if file is None:
        logger.warning(
            "no options file in `experiments` has the name %r; give the one of this experiment the name %r", old, new
        )
        return
    text = file.read_text(encoding="utf-8")
    changed, count = re.subn(
        rf"(?m)^(name:\s*)(['\"]?){re.escape(old)}\2(?=\s*(#.*)?$)", rf"\g<1>\g<2>{new}\g<2>", text
    )
    if count != 1:
        logger.warning("write `name: %s` into %s", new, file)
        return
    write_text(file, changed)
    logger.info("%s: name: %s -> %s", file, old, new)


def _rename_in_files(folder: Path, old: str, new: str) -> None:
    """In what the experiment's stages have written of themselves.

    Checkpoints do not know their experiment's name; conversions say from where they come, and stay as they are: weights
    are known by them.
    """
    _rewrite(folder / "train.json", lambda text: text.replace(f'"experiment": "{old}"', f'"experiment": "{new}"'))
    for options in (folder / "options.yml", Path(VARIANT.format(experiment=new))):
        _rewrite(options, lambda text: re.sub(r"(?m)^name: .*$", f"name: {new}", text, count=1))
    for evaluation in sorted(folder.glob("evaluation/*/*")):
        generations, scores = evaluation / GENERATIONS_FILE, evaluation / SCORES_FILE
        if generations.is_file() and scores.is_file():
            # Scores first: where this is killed between the two, they already name the rows that are written then.
            _rewrite(scores, partial(_resealed_scores, old=old, new=new, rows=_text_of(generations)))
        for path in (generations, *sorted(evaluation.glob("parts/*.jsonl"))):
            _rewrite(path, partial(_resealed, old=old, new=new))


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")  # a damaged one is not whole, then


def _moved(text: str, old: str, new: str) -> str:
    return re.sub(rf"(?<![\w./-])experiments/{re.escape(old)}(?=[/\"'])", f"experiments/{new}", text)


def _resealed(rows: str, old: str, new: str) -> str:
    """Lines of JSON, each sealed again where it was whole."""
    return "".join(
        json_line(sealed(json.loads(_moved(line, old, new)))) if is_whole(_object(line)) else line
        for line in rows.splitlines(keepends=True)
    )


def _resealed_scores(text: str, old: str, new: str, rows: str) -> str:
    """Scores of these rows of generations, where both were whole; others stay as they are."""
    scores = _object(text)
    if not is_whole(scores) or scores.get("generations_sha256") != _sha256(rows):
        return text
    content = {**json.loads(_moved(text, old, new)), "generations_sha256": _sha256(_resealed(rows, old, new))}
    return json.dumps(sealed(content), indent=2, ensure_ascii=False) + "\n"


def _object(text: str) -> dict[str, Any]:
    """The JSON object of a text; an empty one, which is never whole, where it is damaged."""
    try:
        return parse_json(text.encode())
    except ValueError:
        return {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Changes a file, and not its time: Snakemake would take it for made anew."""
    if not path.is_file():
        return
    try:
        found, text = path.stat(), path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # damaged; whoever reads it says so
        return
    changed = change(text)
    if changed != text:
        write_text(path, changed)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


# ------------------------------------------------------------------ Snakemake's records


def _move_records(old: str, new: str | None) -> None:
    """Gives another name to Snakemake's records of an experiment's files, killed jobs' included; None removes them."""
    own = f"experiments/{old}/"
    for folder in (METADATA, INCOMPLETE):
        for name, record in list_records(folder).items():
            try:
                text = record.read_text(encoding="utf-8")
            except ValueError:  # no record
                continue
            if new is None and name.startswith(own):
                record.unlink()
            elif new is not None:
                renamed = f"experiments/{new}/{name.removeprefix(own)}" if name.startswith(own) else name
                _replace(record, folder / record_path(renamed), text, _moved(text, old, new))


def _replace(record: Path, target: Path, text: str, changed: str) -> None:
    """Puts a record in another place, or other text into it."""
    if changed == text and target == record:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, changed)
    if target != record:
        record.unlink()
