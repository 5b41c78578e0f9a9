"""What a training reads and writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omnitune.io.files import lock


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

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        return [word for name, path in vars(self).items() for word in (f"--{name}", str(path))]


def lock_experiment(output: Path) -> IO[str]:
    """Takes the experiment's folder for this training; raises ValueError if another one holds it."""
    return lock(output / ".train.lock", f"{output}: another training is writing here. Wait for it or stop it.")
