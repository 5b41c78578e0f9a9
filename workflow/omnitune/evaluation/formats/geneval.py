"""GenEval: a .jsonl file with one object a line, `prompt` and `tag`, and what its detector looks for.

The scorer reads a folder for each line, numbered from 00000: the line as metadata.jsonl, and samples/0000.png ..
"""

import json
from collections.abc import Iterator

from omnitune.config import Benchmark
from omnitune.evaluation.formats.source import LaidOut, Layout, SourcePrompt, prompts_file, text_of
from omnitune.io.json_object import MAX_NESTING, is_deeper
from omnitune.io.jsonl import read_objects


def read(benchmark: Benchmark, pixels: bool) -> Iterator[SourcePrompt]:
    """The prompts of an evaluation_metadata.jsonl."""
    path = prompts_file(benchmark)
    for number, (line, content) in enumerate(read_objects(path)):
        where = f"{path}:{line}"
        if is_deeper(content, MAX_NESTING - 1):  # it becomes a part of our own line
            raise ValueError(f"{where}: nested more than {MAX_NESTING - 1} levels deep.")
        instruction, tag = text_of(content, "prompt", where), text_of(content, "tag", where)
        yield SourcePrompt(where, path, f"{number:05d}", "t2i", instruction, tag, official=content)


def lay_out(drawn: LaidOut) -> Layout:
    """The folder of one prompt; a sample that is missing is left out, and its number with it."""
    folder = f"{drawn.method}/{drawn.prompt.line_key}"
    samples: Layout = {
        f"{folder}/samples/{number:04d}.png": image for number, image in enumerate(drawn.images) if image is not None
    }
    metadata = json.dumps(drawn.prompt.official).encode()
    return {f"{folder}/metadata.jsonl": metadata, **samples} if samples else {}
