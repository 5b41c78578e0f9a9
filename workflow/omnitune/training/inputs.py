"""What a training reads and writes, and how its processes are told."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.distributed.layout import Layout
from omnitune.io.holder import NotedLock, lock_with_note
from omnitune.paths import starting_adapter_file


@dataclass(frozen=True)
class TrainingFiles:
    """What a training reads and writes.

    Attributes:
        config: options file.
        base: pipeline folder with VAE, text encoder and tokenizer.
        transformer: folder of the transformer to start from.
        index: prepared/{dataset}/shards/index.parquet.
        encoded: prepared/{dataset}/encoded/{model}; read only where data.encode asks for it.
        output: experiments/{experiment}.
    """

    config: Path
    base: Path
    transformer: Path
    index: Path
    encoded: Path
    output: Path

    def weights(self, options: ExperimentOptions) -> list[Path]:
        """Folders of weights that are loaded; VAE and text encoder where samples, held-out ones too, are encoded."""
        encodes = not options.data.encode or options.val.data_path is not None
        encoders = [self.base / part for part in ("vae", "mllm", "processor")] if encodes else []
        adapters = [starting_adapter_file(options.train.lora_path).parent] if options.train.lora_path else []
        return [self.transformer, *adapters, *encoders]

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        return [word for name, path in vars(self).items() for word in (f"--{name}", str(path))]


def layout_arguments(layout: Layout) -> list[str]:
    """How the processes share the work, as command-line arguments of each."""
    strategy = ["--strategy", layout.strategy, "--strategy_reason", layout.reason]
    return [*strategy, "--world_size", str(layout.world_size), "--shard_size", str(layout.shard_size)]


def parse_arguments(description: str | None) -> tuple[TrainingFiles, Layout]:
    """What `TrainingFiles.arguments` and `layout_arguments` have told this process."""
    parser = argparse.ArgumentParser(description=description)
    for field in fields(TrainingFiles):
        parser.add_argument(f"--{field.name}", type=Path, required=True)
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--world_size", type=int, required=True)
    parser.add_argument("--shard_size", type=int, required=True)
    parser.add_argument("--strategy_reason", default="")
    found = vars(parser.parse_args())
    files = TrainingFiles(**{field.name: found[field.name] for field in fields(TrainingFiles)})
    return files, Layout(found["strategy"], found["world_size"], found["shard_size"], found["strategy_reason"])


def lock_experiment(output: Path) -> NotedLock:
    """Takes the experiment's folder for this training; raises ValueError, which says who, if another one holds it."""
    return lock_with_note(output / ".train.lock", f"{output}: another training is writing here")
