"""Counts over validated samples: what summary.json says of a source, and the sum over sources."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# Upper ends of the histograms' classes. Sizes in pixels (width x height); a side of n stands for n x n pixels.
SIZE_SIDES = (256, 512, 768, 1024, 1536, 2048)
ASPECTS = ((1, 2), (2, 3), (4, 5), (5, 4), (3, 2), (2, 1))
COUNTED = ("reasons", "task_types", "formats", "output_sizes", "output_aspects", "notes")
TOTALS = ("rows", "accepted", "rejected", "blank_lines", "images", "image_bytes")


def size_class(width: int, height: int) -> str:
    """The class of a size, for example "to 512x512"."""
    for side in SIZE_SIDES:
        if width * height <= side * side:
            return f"to {side}x{side}"
    return f"above {SIZE_SIDES[-1]}x{SIZE_SIDES[-1]}"


def aspect_class(width: int, height: int) -> str:
    """The class of a ratio of width to height, for example "4:5 to 5:4"."""
    below: tuple[int, int] | None = None
    for across, down in ASPECTS:
        if width * down < height * across:
            return f"{below[0]}:{below[1]} to {across}:{down}" if below else f"below {across}:{down}"
        below = (across, down)
    return f"from {ASPECTS[-1][0]}:{ASPECTS[-1][1]}"


SIZE_CLASSES = [f"to {side}x{side}" for side in SIZE_SIDES] + [f"above {SIZE_SIDES[-1]}x{SIZE_SIDES[-1]}"]
ASPECT_CLASSES = list(dict.fromkeys(aspect_class(k, 100) for k in range(1, 1000)))


class Tally:
    """Counts what summary.json holds; the order in which samples are added does not change the result."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
        self.max_input_images = 0
        self._outputs = array("Q")

    def add_accepted(self, sample: Mapping[str, Any], formats: Iterable[str], notes: Iterable[str]) -> None:
        """Counts an accepted sample: a row of samples.parquet, the formats of its images, and its notes."""
        self.totals.update(rows=1, accepted=1, images=len(sample["bytes"]), image_bytes=sum(sample["bytes"]))
        self.counts["task_types"][sample["task_type"]] += 1
        self.counts["formats"].update(formats)
        self.counts["notes"].update(notes)
        width, height = sample["widths"][-1], sample["heights"][-1]
        self.counts["output_sizes"][size_class(width, height)] += 1
        self.counts["output_aspects"][aspect_class(width, height)] += 1
        self.max_input_images = max(self.max_input_images, len(sample["input_images"]))
        self.add_output(sample["sha256"][-1])

    def add_output(self, sha256: str) -> None:
        """Remembers an output image for the count of duplicates. 64 bits are enough to tell millions apart."""
        self._outputs.append(int(sha256[:16], 16))

    def add_rejected(self, reason: str) -> None:
        """Counts a rejected row."""
        self.totals.update(rows=1, rejected=1)
        self.counts["reasons"][reason] += 1

    def add_summary(self, summary: Mapping[str, Any]) -> None:
        """Adds what a source's summary counts; its output images are added one by one, by `add_output`."""
        self.totals.update({name: summary[name] for name in TOTALS})
        for name in COUNTED:
            self.counts[name].update(summary[name])
        self.max_input_images = max(self.max_input_images, summary["max_input_images"])

    def summary(self) -> dict[str, Any]:
        """The counts as plain values, every histogram in the order of its classes and the rest by frequency."""
        result: dict[str, Any] = {name: self.totals[name] for name in TOTALS}
        result["max_input_images"] = self.max_input_images
        result["duplicate_output_images"] = len(self._outputs) - len(np.unique(np.asarray(self._outputs)))
        order = {"output_sizes": SIZE_CLASSES, "output_aspects": ASPECT_CLASSES}
        for name, counter in self.counts.items():
            if name in order:
                result[name] = {label: counter[label] for label in order[name]}
            else:
                result[name] = dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
        return result
