"""What users do to a project, one thing at a time: each edit changes a Lab, or a file that a run has left."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from helpers.lab import BENCHMARK, Lab, make_newer, row

KEYS: list[tuple[str, str, list[Any]]] = [
    ("train", "learning_rate", [0.001, 0.002]),
    ("train", "max_train_steps", [4, 6]),
    ("train", "batch_size", [2, 1]),
    ("logger", "log_with", [None, ["tensorboard"]]),
    ("val", "evaluate_checkpoints", ["last", "all"]),
    ("data", "max_output_pixels", [1024, 512]),
    ("data", "maximum_text_tokens", [64, 65]),
    ("data", "samples_per_shard", [8, 5]),
    ("data", "max_reject_fraction", [0.5, 0.6]),
    ("data", "prompt_dropout_prob", [0.0001, 0.1]),
    ("data", "encoded_precision", ["fp32", "bf16"]),
    ("data", "encode", [True, False]),
]
BENCHMARK_KEYS: list[tuple[str, list[Any]]] = [
    ("seed", [0, 1]),
    ("num_inference_steps", [1, 2]),
    ("check", ["demo_scene", None]),
    ("batch_size", [2, 3]),
    ("parts", [1, 2]),
]
LOST = [
    "resources/pretrained/demo/manifest.json",
    "prepared/a/validation/rejected.jsonl",
    "prepared/a/validation/summary.json",
    "prepared/a/shards/a1-00000.tar",
    "prepared/a/shards/a2-00000.parquet",
    "prepared/a/shards/index.parquet",
    "prepared/a/shards/index.arrow",
    "prepared/b/encoded/demo/groups/b1-0001.parquet",
    "prepared/b/shards/b1-00001.tar",
    "prepared/b/validation/sources/b1/samples.parquet",
    "resources/benchmarks/first/protocol.json",
    "experiments/one/identity.json",
    "experiments/one/train.json",
    "experiments/one/checkpoint-4/transformer/conversion.json",
    "experiments/two/train.json",
    "experiments/two/checkpoint-4/transformer_lora/conversion.json",
    "experiments/one/evaluation/0/first/scores.json",
    "experiments/one/evaluation/4/first/generations.jsonl",
    "experiments/two/evaluation/4/first/parts/0.jsonl",
    "experiments/two/report/index.html",
]


@dataclass(frozen=True)
class Edit:
    """One thing that a user does.

    Attributes:
        name: for the log of a failing example.
        change: of what is written.
        lose: a file that is deleted.
        touch: a file whose time of change moves.
    """

    name: str
    change: Callable[[Lab], None] = lambda lab: None
    lose: str | None = None
    touch: str | None = None

    def __repr__(self) -> str:
        return self.name

    def apply(self, lab: Lab, root: Path) -> None:
        """Does it; the Lab is to be written by the caller."""
        self.change(lab)
        if self.lose:
            (root / self.lose).unlink(missing_ok=True)
        if self.touch and (root / self.touch).exists():
            make_newer(root / self.touch)


def set_key(section: str, key: str, value: Any, experiment: str) -> Edit:
    def change(lab: Lab) -> None:
        names = [experiment]
        if section == "data":  # experiments that share a data set must agree
            path = lab.options.get(experiment, {}).get("data", {}).get("data_path")
            names = [name for name, options in lab.options.items() if options["data"]["data_path"] == path]
        for name in names:
            if name in lab.options:
                lab.options[name].setdefault(section, {})[key] = value

    return Edit(f"{experiment}: {section}.{key} = {value}", change)


def start_over(experiment: str, value: str | None) -> Edit:
    def change(lab: Lab) -> None:
        lab.options[experiment]["resume_from_checkpoint"] = value

    return Edit(f"{experiment}: resume_from_checkpoint = {value}", change)


def benchmark_key(key: str, value: Any) -> Edit:
    return Edit(f"first: {key} = {value}", lambda lab: lab.benchmarks["first"].update({key: value}))


def edit_rows(source: str, kind: str) -> Edit:
    def change(lab: Lab) -> None:
        rows = lab.rows[source]
        if kind == "append":
            rows.append(row(source, 20 + len(rows) % 19))
        elif kind == "append a broken one":
            rows.append(row(source, 0))
        elif kind == "append a blank line":
            rows.append("")
        elif kind == "remove" and len(rows) > 3:
            rows.pop()
        elif kind == "change":
            rows[1] = {**row(source, 2), "instruction": f"{source} other"}

    return Edit(f"{source}.jsonl: {kind}", change)


def edit_mixture(kind: str) -> Edit:
    def change(lab: Lab) -> None:
        entries = lab.mixtures["a"]
        if kind == "ratio":
            entries[0]["ratio"] = 2 if entries[0]["ratio"] == 3 else 3
        elif kind == "ratios of the same shares":
            entries[:] = [{**entry, "ratio": float(entry["ratio"] * 2)} for entry in entries]
        elif kind == "type":
            entries[0]["type"] = "other"
        elif kind == "order":
            entries.reverse()

    return Edit(f"a.yml: {kind}", change)


def third_experiment(start: str, dataset: str) -> Edit:
    def change(lab: Lab) -> None:
        owner = "one" if dataset == "a" else "two"
        options = lab.copy().options[owner]
        options["model"]["pretrained_model_path"] = start
        options["train"] = {key: value for key, value in options["train"].items() if not key.startswith("lora")}
        lab.options["three"] = options
        lab.experiments = ["three", *(name for name in lab.experiments if name != "three")]

    return Edit(f"experiment three on {dataset} from {start}", change)


def edit_list(kind: str) -> Edit:
    def change(lab: Lab) -> None:
        if kind == "remove two" and len(lab.experiments) > 1:
            lab.experiments = [name for name in lab.experiments if name != "two"]
        elif kind == "experiments in another order":
            lab.experiments.reverse()
        elif kind == "a second benchmark":
            lab.benchmarks["second"] = {**BENCHMARK, "seed": 9}
            lab.shown = ["second", *(name for name in lab.shown if name != "second")]
        elif kind == "no benchmark":
            lab.shown = []
        elif kind == "benchmarks in another order":
            lab.shown.reverse()

    return Edit(kind, change)


def edit_form(path: str, kind: str) -> Edit:
    def change(lab: Lab) -> None:
        if kind == "comment":
            lab.comments[path] = lab.comments.get(path, "") + "# a comment\n"
        else:
            lab.reverse ^= {path}

    return Edit(f"{path}: {kind}", change)


def lose(path: str) -> Edit:
    """Deletes a file."""
    return Edit(f"lose {path}", lose=path)


def append_row(source: str) -> Edit:
    """One more sample."""
    return edit_rows(source, "append")


def remove_row(source: str) -> Edit:
    """Without the last sample."""
    return edit_rows(source, "remove")


def change_row(source: str) -> Edit:
    """Another caption in a sample."""
    return edit_rows(source, "change")


FILES = ("config/config.yaml", "config/options/one.yml", "config/data/a.yml", "config/benchmarks/first.yml")
EXPERIMENTS = st.sampled_from(["one", "two"])
SOURCES = st.sampled_from(["a1", "a2", "b1"])

EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(
        lambda key, which, experiment: set_key(key[0], key[1], key[2][which], experiment),
        st.sampled_from(KEYS),
        st.integers(0, 1),
        EXPERIMENTS,
    ),
    st.builds(start_over, EXPERIMENTS, st.sampled_from([None, "latest"])),
    st.builds(start_over, EXPERIMENTS, st.none()),
    st.builds(
        lambda key, which: benchmark_key(key[0], key[1][which]), st.sampled_from(BENCHMARK_KEYS), st.integers(0, 1)
    ),
    st.builds(
        edit_rows,
        SOURCES,
        st.sampled_from(["append", "append a broken one", "append a blank line", "remove", "change"]),
    ),
    st.builds(edit_mixture, st.sampled_from(["ratio", "ratios of the same shares", "type", "order"])),
    st.builds(
        third_experiment,
        st.sampled_from(
            ["demo", "experiments/one/checkpoint-2/transformer", "experiments/one/checkpoint-4/transformer"]
        ),
        st.sampled_from(["a", "b"]),
    ),
    st.builds(
        edit_list,
        st.sampled_from(
            [
                "remove two",
                "experiments in another order",
                "a second benchmark",
                "no benchmark",
                "benchmarks in another order",
            ]
        ),
    ),
    st.builds(edit_form, st.sampled_from(FILES), st.sampled_from(["comment", "other order"])),
    st.builds(lose, st.sampled_from(LOST)),
    st.builds(lose, st.sampled_from(LOST)),
    st.builds(
        lambda path: Edit(f"touch {path}", touch=path),
        st.sampled_from(["data/a1.jsonl", "data/prompts.jsonl", *LOST]),
    ),
)
