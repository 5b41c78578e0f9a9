"""The plan of a training for a terminal."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.table import Table

from omnitune.checkpoints.identity import stretched
from omnitune.config.experiment.options import without_meaning
from omnitune.paths import EXPERIMENT
from omnitune.planning.memory import FITS, gigabytes
from omnitune.planning.plan import TrainingPlan
from omnitune.planning.workload import histogram
from omnitune.training.schedules import never_reached

PARTS = {
    "weights": "weights",
    "optimizer": "optimizer",
    "average": "averaged weights",
    "encoders": "VAE and text encoder",
    "gradients": "gradients",
    "gathered": "weights that FSDP has gathered",
    "activations": "activations kept",
    "temporary": "what is being computed",
}
MOMENTS = {
    "forward": "at the end of the forward pass",
    "backward": "in the backward pass",
    "update": "in the update of the weights",
}


def plan_tables(plan: TrainingPlan) -> list[Table]:
    """A plan as tables: the whole, memory, disk, sources, microbatches, samples, and changes where it does not fit."""
    tables = [_whole(plan), _memory(plan), _disk(plan), _sources(plan), _microbatches(plan)]
    if plan.kinds.task_types:
        tables.append(_samples(plan))
    return [*tables, _remedies(plan)] if plan.remedies else tables


def plan_warnings(plan: TrainingPlan) -> Iterator[str]:
    """What a person should know before starting."""
    device, needed = plan.machine.device_bytes, plan.memory.total
    if not plan.fits:
        yield (
            f"does not fit: a process needs {gigabytes(needed)}, and {FITS:.0%} of {gigabytes(device)} is "
            f"{gigabytes(FITS * device)}. The last table says what each change alone would need."
        )
    if plan.assumed:
        yield (
            f"{plan.assumed}. So it is planned from the limits of the options: square images as large as they may be, "
            f"texts of {plan.options.data.maximum_text_tokens} tokens, and as many references as the type of a source "
            "has, or as take most. After `snakemake --cores 2 shard` it is planned from the samples."
        )
    elif not plan.workload.text_counted:
        longest = plan.options.data.maximum_text_tokens
        yield (
            f"the index has no text tokens of some samples; {longest} (data.maximum_text_tokens) are assumed for each."
        )
    if not plan.options.data.encode and not plan.memory.encoders:
        yield "VAE and text encoder are not in it: their files are not there yet, and their sizes not known."
    another = stretched(plan.options, Path(EXPERIMENT.format(experiment=plan.options.name)))
    if another:
        yield another
    yield from without_meaning(plan.options)
    yield from never_reached(plan.options)
    if plan.gpu_hours:
        yield (
            "the hours are of steps that were measured on one GPU of that kind (benchmarks/RESULTS.md); saving, "
            f"evaluation{'' if plan.options.data.encode else ', encoding'} and the exchange between processes are not "
            "in them."
        )
    elif plan.rate is None:
        yield "hours are not known: give --samples_per_second, or train some steps first."


def _table(title: str, *columns: str, show_header: bool = True) -> Table:
    return Table(*columns, title=title, title_justify="left", show_header=show_header, min_width=40)


def _whole(plan: TrainingPlan) -> Table:
    train, machine = plan.options.train, plan.machine
    table = _table(f"Training of {plan.options.name}", "", "", show_header=False)
    table.add_row("parameters", f"{plan.parameters:,}")
    table.add_row("trained", f"{plan.trained:,} ({plan.trained / plan.parameters:.2%})")
    place = f"{machine.processes} x {gigabytes(machine.device_bytes)}, {machine.nodes} node{'s'[: machine.nodes > 1]}"
    table.add_row("processes", f"{place} ({'GPU' if machine.device == 'cuda' else 'CPU'})")
    table.add_row("parallelism", f"{plan.strategy} ({plan.reason})" if plan.reason else plan.strategy)
    cut = f"{train.batch_size} x {machine.processes} x {train.gradient_accumulation_steps}"
    table.add_row("samples per step", f"{train.global_batch_size:,} = {cut}")
    table.add_row("steps", f"{train.max_train_steps:,}, {train.max_train_steps * train.global_batch_size:,} samples")
    table.add_row("FLOPs per step", _trillions(plan.step_flops))
    table.add_row("waiting for others", f"{plan.workload.waste:.1%} of the time")
    kept = f"{plan.checkpoints} kept, {gigabytes(plan.checkpoints * plan.checkpoint_bytes)}"
    table.add_row("checkpoint", f"{gigabytes(plan.checkpoint_bytes)}; {kept}")
    if plan.rate and plan.hours is not None:
        table.add_row("rate", f"{plan.rate.samples_per_second:.4g} samples/s ({plan.rate.origin})")
        reached = plan.step_flops * plan.rate.samples_per_second / train.global_batch_size / machine.processes
        table.add_row("at that rate", f"{plan.hours:,.1f} hours, {_trillions(reached)} FLOPs/s per process")
    for found in plan.gpu_hours:
        measured = f"{found.gpu} (measured: {found.share:.1%} of its peak)"
        table.add_row(f"on {machine.processes} x {found.gpu}", f"{found.hours:,.1f} hours; {measured}")
    return table


def _trillions(number: float) -> str:
    return f"{number / 1e12:,.{0 if number >= 1e14 else 4}f} x 10^12"


def _memory(plan: TrainingPlan) -> Table:
    batch, total = plan.workload.heaviest, plan.memory.total
    tokens = sum(sample.total for sample in batch)
    parts = (
        f"{sum(s.text for s in batch):,} of text, {sum(sum(s.references) for s in batch):,} of references, "
        f"{sum(s.image for s in batch):,} of images"
    )
    title = f"Memory of a process {MOMENTS[plan.memory.moment]} of the largest microbatch: {tokens:,} tokens ({parts})"
    table = _table(title, "part", "bytes", "share")
    for name, size in plan.memory.parts.items():
        if size:
            table.add_row(PARTS[name], gigabytes(size), f"{size / total:.1%}")
    table.add_row("all", gigabytes(total), f"{total / plan.machine.device_bytes:.1%} of the device")
    return table


def _disk(plan: TrainingPlan) -> Table:
    table = _table("Disk", "for", "bytes", "where, how sure")
    for space in plan.disk:
        table.add_row(space.purpose, "not known" if space.size is None else gigabytes(space.size), space.note)
    known = sum(space.size for space in plan.disk if space.size is not None)
    table.add_row("all that is known", gigabytes(known), "")
    return table


def _sources(plan: TrainingPlan) -> Table:
    table = _table("Sources", "source", "samples", "share", "steps per epoch", "epochs")
    for source in plan.sources:
        figures = (
            _known(source.samples, ","),
            f"{source.share:.2%}",
            _known(source.steps_per_epoch, ",.1f"),
            _known(source.epochs, ",.2f"),
        )
        table.add_row(source.name, *figures)
    return table


def _known(number: float | None, form: str) -> str:
    return "not known" if number is None else format(number, form)


def _microbatches(plan: TrainingPlan) -> Table:
    title = f"Microbatches by tokens, first {plan.workload.steps} steps"
    return _counts(title, "tokens", histogram(plan.workload.tokens))


def _samples(plan: TrainingPlan) -> Table:
    kinds = plan.kinds
    references = [
        (f"{number} reference{'s'[: number != 1]}", count) for number, count in sorted(kinds.references.items())
    ]
    rows = [*kinds.task_types.most_common(), *references, *kinds.sizes.most_common()]
    return _counts("Samples of the sources", "kind", rows, whole=sum(kinds.task_types.values()))


def _counts(title: str, kind: str, rows: Iterable[tuple[str, int]], whole: int | None = None) -> Table:
    rows = list(rows)
    table = _table(title, kind, "count", "share")
    for name, count in rows:
        table.add_row(name, f"{count:,}", f"{count / (whole or sum(n for _, n in rows)):.1%}")
    return table


def _remedies(plan: TrainingPlan) -> Table:
    table = _table("Each of these changes alone", "change", "needs", "fits")
    for remedy in plan.remedies:
        fits = remedy.total <= FITS * plan.machine.device_bytes
        table.add_row(remedy.change, gigabytes(remedy.total), "yes" if fits else "no")
    return table
