"""What a dry run must say after edits, worked out without Snakemake: from what the user had written when all was
finished and what is written and there now. The tests hold the real graph against it.

A job runs for one of three reasons: what its parameters were read as has changed, a file of the user's that it reads
has other content, or an output that is asked for is lost. What stands behind it may run; a dry run lists all of that,
but not what
only a phase that runs can know: tars behind a validation, encodings behind an index.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from helpers.lab import Lab

Job = tuple[str, tuple[tuple[str, str], ...]]

IMAGE_LIMITS = ("max_output_pixels", "max_input_pixels", "max_side_length", "image_format", "image_quality")
OF_SAMPLES = ("maximum_text_tokens", "use_chat_template", "max_image_pixels", "validation_depth")
OF_MANIFESTS = ("max_reject_fraction", "samples_per_shard")
OF_ENCODINGS = ("encoded_precision", "maximum_text_tokens", "use_chat_template")
FREE_IN_DATA = {
    "data_path",
    "max_reject_fraction",
    "samples_per_shard",
    "shards_per_encoding",
    "url_cache_mb",
    *OF_SAMPLES[2:],
}
FREE_IN_TRAIN = {
    "batch_size",
    "max_train_steps",
    "dataloader_num_workers",
    "gradient_checkpointing",
    "compile",
    "async_checkpoint",
}
OF_IMAGES = ("seed", "num_inference_steps", "text_guidance_scale", "height", "width", "loss_timesteps")


def job(rule: str, **wildcards: object) -> Job:
    """A job as `planner.Plan` names it."""
    return rule, tuple(sorted((name, str(value)) for name, value in wildcards.items()))


@dataclass
class Node:
    """A job of the graph.

    Attributes:
        facts: what it has read: when it was run and now they must be the same.
        needs: the jobs whose outputs it takes.
        outputs: its files.
        asked: whether its outputs are targets.
    """

    facts: Any = None
    needs: list[Job] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    asked: bool = True


def dataset_of(lab: Lab, experiment: str) -> str:
    """Name of the data set that an experiment trains on."""
    path: str = lab.options[experiment]["data"]["data_path"]
    return path.removeprefix("config/data/").removesuffix(".yml")


def sources_of(lab: Lab, dataset: str) -> list[str]:
    """Sources of a data set, sorted."""
    return sorted(entry["path"].removeprefix("data/").removesuffix(".jsonl") for entry in lab.mixtures[dataset])


def steps_of(lab: Lab, experiment: str) -> list[int]:
    """Steps at which an experiment saves."""
    options = lab.options[experiment]
    last, every = options["train"]["max_train_steps"], options["logger"]["checkpointing_steps"]
    return sorted({*range(every, last, every), last})


def evaluated_of(lab: Lab, experiment: str) -> list[int]:
    """Steps that are converted and evaluated."""
    steps = steps_of(lab, experiment)
    return steps if lab.options[experiment].get("val", {}).get("evaluate_checkpoints") == "all" else steps[-1:]


def start_of(lab: Lab, experiment: str) -> tuple[str, int] | None:
    """Experiment and step that training starts from."""
    path = lab.options[experiment]["model"]["pretrained_model_path"]
    if path == "demo":
        return None
    _, name, checkpoint, _ = path.split("/")
    return name, int(checkpoint.removeprefix("checkpoint-"))


def weights_of(lab: Lab, experiment: str) -> str:
    """Name of the folder of converted weights."""
    return "transformer_lora" if lab.options[experiment]["train"].get("lora_ft") else "transformer"


def picked(content: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Those keys that are there."""
    return {key: content[key] for key in keys if key in content}


def ratios(lab: Lab, dataset: str) -> dict[str, float]:
    """Shares of the sources."""
    total = sum(entry["ratio"] for entry in lab.mixtures[dataset])
    return {entry["path"]: entry["ratio"] / total for entry in lab.mixtures[dataset]}


def weights_facts(lab: Lab, experiment: str) -> Any:
    """What the config says of the weights that a training comes to."""
    options = lab.options[experiment]
    free = FREE_IN_DATA if options["data"]["encode"] else {*FREE_IN_DATA, "encoded_precision"}
    data = {key: value for key, value in options["data"].items() if key not in free}
    train = {key: value for key, value in options["train"].items() if key not in FREE_IN_TRAIN}
    return options["seed"], data, train, options["model"], ratios(lab, dataset_of(lab, experiment))


class Graph:
    """All jobs of a Lab, as far as they can be known.

    Args:
        lab: what is written.
        shards: names of the shards of each data set, as the last validation has cut them.
    """

    def __init__(self, lab: Lab, shards: Mapping[str, list[str]]) -> None:
        self.lab, self.shards = lab, shards
        self.nodes: dict[Job, Node] = {}
        self._add(job("prepare_pretrained", model="demo"), "demo", [], ["resources/pretrained/demo/manifest.json"])
        for dataset in sorted({dataset_of(lab, name) for name in lab.experiments}):
            self._add_dataset(dataset)
        for name in lab.shown:
            facts = picked(lab.benchmarks[name], OF_IMAGES), lab.benchmarks[name].get("check")
            outputs = [f"resources/benchmarks/{name}/{file}.json" for file in ("protocol", "scoring")]
            self._add(job("prepare_benchmark", benchmark=name), facts, [], outputs)
        for name in lab.experiments:
            self._add_training(name)
        for name in lab.experiments:
            self._add_evaluations(name)

    def _add(self, name: Job, facts: Any, needs: list[Job], outputs: list[str], asked: bool = True) -> Job:
        self.nodes[name] = Node(facts, needs, outputs, asked)
        return name

    def _add_dataset(self, dataset: str) -> None:
        lab, folder = self.lab, f"prepared/{dataset}"
        owner = next(name for name in lab.experiments if dataset_of(lab, name) == dataset)
        data = lab.options[owner]["data"]
        base = job("prepare_pretrained", model="demo")
        sources = []
        for source in sources_of(lab, dataset):
            limits = data["max_input_pixels"]
            facts = lab._lines(lab.rows[source]), picked(data, OF_SAMPLES), len(limits)
            outputs = [f"{folder}/validation/sources/{source}/samples.parquet"]
            name = job("validate_source", dataset=dataset, source=source)
            sources.append(self._add(name, facts, [base], outputs, asked=False))
        facts = picked(data, (*OF_MANIFESTS, *IMAGE_LIMITS)), sources_of(lab, dataset)
        outputs = [
            f"{folder}/validation/{file}" for file in ("samples.parquet", "rejected.jsonl", "summary.json", "shards")
        ]
        validated = self._add(job("validate_dataset", dataset=dataset), facts, sources, outputs)
        tars = []
        for shard in self.shards.get(dataset, []):
            source, _, number = shard.rpartition("-")
            outputs = [f"{folder}/shards/{shard}.{kind}" for kind in ("tar", "parquet")]
            name = job("shard_dataset", dataset=dataset, source=source, shard=number)
            tars.append(self._add(name, picked(data, IMAGE_LIMITS), [validated], outputs))
        outputs = [f"{folder}/shards/{file}" for file in ("index.parquet", "index.arrow", "digests")]
        self._add(job("index_dataset", dataset=dataset), None, [validated, *tars], outputs)
        for shard in self.shards.get(dataset, []) if data["encode"] else []:
            source, _, number = shard.rpartition("-")
            name = job("encode_dataset", dataset=dataset, model="demo", source=source, group=f"{int(number):04d}")
            outputs = [f"{folder}/encoded/demo/groups/{source}-{int(number):04d}.parquet"]
            self._add(name, picked(data, OF_ENCODINGS), [base], outputs)

    def _add_training(self, name: str) -> None:
        lab, dataset, folder = self.lab, dataset_of(self.lab, name), f"experiments/{name}"
        start = start_of(lab, name)
        needs = [job("index_dataset", dataset=dataset), job("prepare_pretrained", model="demo")]
        needs += [other for other in self.nodes if other[0] == "encode_dataset" and ("dataset", dataset) in other[1]]
        if start and start[0] in lab.experiments:
            needs.append(
                job("convert_checkpoint", experiment=start[0], step=start[1], weights=weights_of(lab, start[0]))
            )
        prepared = job("prepare_training", experiment=name)
        self._add(prepared, weights_facts(lab, name), needs, [f"{folder}/identity.json"])
        options = lab.options[name]
        facts = options["train"]["max_train_steps"], options["logger"]["checkpointing_steps"]
        trained = self._add(job("train_experiment", experiment=name), facts, [prepared], [f"{folder}/train.json"])
        wanted = {*evaluated_of(lab, name)}
        for other in lab.experiments:
            other_start = start_of(lab, other)
            if other_start and other_start[0] == name:
                wanted.add(other_start[1])
        for step in sorted(wanted):
            weights = weights_of(lab, name)
            output = f"{folder}/checkpoint-{step}/{weights}/conversion.json"
            converted = job("convert_checkpoint", experiment=name, step=step, weights=weights)
            left = name in ("one", "two") and step in (
                2,
                4,
            )  # a dry run sees the checkpoint, and not that it comes again
            self._add(converted, None, [prepared] if left else [prepared, trained], [output])

    def evaluations(self, name: str) -> dict[int, tuple[str, int]]:
        """Whose evaluation of which step each of an experiment's is."""
        start = start_of(self.lab, name)
        found = {step: (name, step) for step in (0, *evaluated_of(self.lab, name))}
        found[0] = min(other for other in self.lab.experiments if start_of(self.lab, other) == start), 0
        if start and start[0] in self.lab.experiments and start[1] in evaluated_of(self.lab, start[0]):
            found[0] = start
        return found

    def _add_evaluations(self, name: str) -> None:
        lab, base = self.lab, job("prepare_pretrained", model="demo")
        scored = []
        for owner, step in self.evaluations(name).values():
            start = start_of(lab, owner)
            if step:
                weights = [job("convert_checkpoint", experiment=owner, step=step, weights=weights_of(lab, owner))]
            elif start and start[0] in lab.experiments:
                weights = [
                    job("convert_checkpoint", experiment=start[0], step=start[1], weights=weights_of(lab, start[0]))
                ]
            else:
                weights = []
            for benchmark in lab.shown:
                folder = f"experiments/{owner}/evaluation/{step}/{benchmark}"
                listed = job("prepare_benchmark", benchmark=benchmark)
                keys = {"experiment": owner, "step": step, "benchmark": benchmark}
                parts, number = [], lab.benchmarks[benchmark]["parts"]
                for part in range(number):
                    drawn = job("generate_images", part=part, **keys)
                    needs = [*weights, base, listed]
                    parts.append(self._add(drawn, number, needs, [f"{folder}/parts/{part}.jsonl"], asked=False))
                outputs = [f"{folder}/scores.json", f"{folder}/generations.jsonl"]
                scored.append(self._add(job("score_images", **keys), number, [*parts, listed], outputs))
        needs = [
            job("train_experiment", experiment=name),
            job("validate_dataset", dataset=dataset_of(lab, name)),
            *(job("prepare_benchmark", benchmark=benchmark) for benchmark in lab.shown),
            *(
                job("convert_checkpoint", experiment=name, step=step, weights=weights_of(lab, name))
                for step in evaluated_of(lab, name)
            ),
            *scored,
        ]
        facts = sorted(self.evaluations(name).items()), sorted(lab.shown)
        self._add(
            job("build_report", experiment=name),
            facts,
            needs,
            [
                f"experiments/{name}/report/{file}"
                for file in ("index.html", *(f"{table}.csv" for table in ("scores", "generations", "metrics")))
            ],
        )


def expected(before: Graph, now: Graph, lost: set[str]) -> set[Job]:
    """The jobs that a dry run lists.

    Args:
        before: when all was finished.
        now: what is written now.
        lost: files that are there no more.
    """
    changed = {
        name
        for name, node in now.nodes.items()
        if name not in before.nodes or before.nodes[name].facts != node.facts or before.nodes[name].needs != node.needs
    }
    planned = changed | {name for name, node in now.nodes.items() if node.asked and lost & set(node.outputs)}
    known = frozenset(planned)
    while True:
        behind = {name for name, node in now.nodes.items() if planned & set(node.needs)}
        # An input that is lost is made again for the job that takes it.
        before_it = {
            need
            for name in planned | behind
            for need in now.nodes[name].needs
            if need in now.nodes and lost & set(now.nodes[need].outputs)
        }
        if behind | before_it <= planned:
            break
        planned |= behind | before_it
    return {name for name in planned if not _unknown(name, planned, known)}


def _unknown(name: Job, planned: set[Job], known: frozenset[Job]) -> bool:
    """What only a phase that runs can know; `known` are the jobs with a reason of their own."""
    rule, wildcards = name[0], dict(name[1])
    validated = job("validate_dataset", dataset=wildcards.get("dataset"))
    index = job("index_dataset", dataset=wildcards.get("dataset"))
    if rule == "shard_dataset":
        return validated in planned
    return rule == "encode_dataset" and (validated in planned or index in known)


Trained = Mapping[str, Lab]  # by experiment: what was written when it was trained


def refused(trained: Trained, now: Lab) -> set[str]:
    """Experiments whose training a run refuses before any job: changed since it was trained, and not to start over."""
    return {name for name in now.experiments if _is_changed(trained, now, name) and not _starts_over(now, name)}


def refused_later(trained: Trained, now: Lab) -> set[str]:
    """Those that it refuses once their data is validated: as many rows as before, but others."""
    names = [name for name in now.experiments if name in trained and not _starts_over(now, name)]
    return {name for name in names if _samples(trained[name], name) != _samples(now, name)}


def _starts_over(lab: Lab, name: str) -> bool:
    return lab.options[name].get("resume_from_checkpoint", "latest") is None


def _is_changed(trained: Trained, now: Lab, name: str) -> bool:
    if name not in trained:
        return False
    start = start_of(now, name)
    if start and start[0] in now.experiments and _is_changed(trained, now, start[0]):
        return True
    before, after = (
        [
            (source, sum(bool(line.strip()) for line in _text(lab, source)))
            for source in sources_of(lab, dataset_of(lab, name))
        ]
        for lab in (trained[name], now)
    )
    return weights_facts(trained[name], name) != weights_facts(now, name) or before != after


def _text(lab: Lab, source: str) -> list[str]:
    return lab._lines(lab.rows[source]).splitlines()


def _samples(lab: Lab, name: str) -> list[tuple[str, list[str]]]:
    """The rows that are accepted, with the numbers of their lines, which are in their keys."""
    return [
        (
            source,
            [f"{number} {line}" for number, line in enumerate(_text(lab, source)) if line and "none.png" not in line],
        )
        for source in sources_of(lab, dataset_of(lab, name))
    ]
