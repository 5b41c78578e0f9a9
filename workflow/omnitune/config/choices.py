"""What can be added by name: each choice is an entry here and a function. docs/extending.md adds one of each kind.

Functions are named, not imported: what reads a config needs none of the libraries that they use.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class OneOf:
    """An annotation of a key whose value is the name of a choice."""

    def __init__(self, choices: Iterable[str]) -> None:
        self.names = list(choices)

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(self.names)


@dataclass(frozen=True)
class Choice:
    """A choice that is a function.

    Attributes:
        function: where it is, `module:name`.
    """

    function: str

    def load(self) -> Any:
        """The function."""
        return resolve_name(self.function)


@dataclass(frozen=True)
class Schedule(Choice):
    """A learning rate schedule: a function of the `train` section to one of the update, counted from 0, to the rate.

    Attributes:
        stretches: whether another max_train_steps changes the rates of steps before its end.
    """

    stretches: bool = False


@dataclass(frozen=True)
class Check(Choice):
    """A check of a picture's content: a function of an image and its prompt's `expect` to figures by name.

    Those that have a measure, check_{name}, are shown; `passed` is the verdict of all of them.

    Attributes:
        expectation: `module:name` of a pydantic model of `expect`.
    """

    expectation: str

    def load_expectation(self) -> Any:
        """The model."""
        return resolve_name(self.expectation)


@dataclass(frozen=True)
class ImageFormat:
    """A format that images are written in, by Pillow.

    Attributes:
        extension: of the file.
        pillow: its name there.
        options: of saving.
        has_quality: whether data.image_quality is one of them.
        bytes_per_pixel: of photographs at quality 95, by which the size of shards is foretold.
    """

    extension: str
    pillow: str
    bytes_per_pixel: float
    options: Mapping[str, Any] = field(default_factory=dict)
    has_quality: bool = False


@dataclass(frozen=True)
class PromptFormat:
    """A form that prompts are published in, and the layout in which its scorer reads images.

    Attributes:
        reader: `module:name` of a function of a Benchmark to its SourcePrompts; None for our own .jsonl.
        layout: `module:name` of a function of a prompt's LaidOut to the files that the scorer reads; None where there
            is no such scorer.
        draws: how many images of a prompt it takes; empty for any number.
        has_languages: whether rows name the language of their instruction.
    """

    reader: str | None = None
    layout: str | None = None
    draws: tuple[int, ...] = ()
    has_languages: bool = False

    def load_reader(self) -> Any:
        """The reader."""
        assert self.reader
        return resolve_name(self.reader)

    def load_layout(self) -> Any:
        """The function that lays out."""
        assert self.layout
        return resolve_name(self.layout)


@dataclass(frozen=True)
class Measure:
    """A figure of a generated image, and how the report shows it.

    Attributes:
        function: `module:name` of a function of `omnitune.evaluation.measures.measure.Case`, which gives None where
            there is nothing to measure; None for a figure of the benchmark's check, check_{name}.
        label: for people.
        higher_is_better: which change counts as better.
        digits: behind the point.
        share: whether it is a share of 1, shown in percent.
        headline: its place among those that a verdict is about where the benchmark names none, from 1; 0: the last.
        model: `module:name` of a function of a folder to what `Case.models` has for it, where it needs a model.
        has_label: whether that function takes the entry's `label` beside the folder.
        of_set: whether it is of all images together: a function of features of images and targets, [N, D] each. It has
            neither an interval nor a verdict.
    """

    function: str | None
    label: str
    higher_is_better: bool = True
    digits: int = 4
    share: bool = False
    headline: int = 0
    model: str | None = None
    has_label: bool = False
    of_set: bool = False

    def load(self) -> Any:
        """The function."""
        assert self.function
        return resolve_name(self.function)

    def load_loader(self) -> Any:
        """The function that loads the model."""
        assert self.model
        return resolve_name(self.model)


JUDGED = ("instruction", "quality")  # what judges score, from 0 to 10
JUDGE_MEASURE = re.compile(rf"judge_(?P<judge>\w+)_(?P<score>{'|'.join(JUDGED)})")


def judge_measure(judge: str, score: str) -> str:
    """Name of the measure that a judge's score is."""
    return f"judge_{judge}_{score}"


class Measures(dict[str, Measure]):
    """Measures by name: those that are registered, and of judges, which benchmarks name, judge_{name}_{score}."""

    def __missing__(self, name: str) -> Measure:
        match = JUDGE_MEASURE.fullmatch(name)
        if match is None:
            raise KeyError(name)
        return Measure(None, f"{match['judge']}: {match['score']}", digits=2)

    def among(self, names: Iterable[str]) -> list[str]:
        """Those of some names that are measures, in the order of their table: judges' come last."""
        found = set(names)
        return [name for name in self if name in found] + sorted(filter(JUDGE_MEASURE.fullmatch, found))


OPTIMIZERS = {  # functions of parameter groups and the `train` section to an optimizer
    "adamw": Choice("omnitune.training.optimizer:adamw"),
    "adamw_8bit": Choice("omnitune.training.optimizer:adamw_8bit"),
    "adafactor": Choice("omnitune.training.optimizer:adafactor"),
    "prodigy": Choice("omnitune.training.optimizer:prodigy"),
    "muon": Choice("omnitune.training.optimizer:muon"),
}
_DIFFUSERS = "omnitune.training.schedules:of_diffusers"
SCHEDULES = {
    "timm_constant_with_warmup": Schedule("omnitune.training.schedules:timm_constant_with_warmup"),
    "timm_cosine": Schedule("omnitune.training.schedules:timm_cosine", stretches=True),
    "constant": Schedule(_DIFFUSERS),
    "constant_with_warmup": Schedule(_DIFFUSERS),
    "linear": Schedule(_DIFFUSERS, stretches=True),
    "cosine": Schedule(_DIFFUSERS, stretches=True),
    "cosine_with_restarts": Schedule(_DIFFUSERS, stretches=True),
    "polynomial": Schedule(_DIFFUSERS, stretches=True),
    "piecewise_constant": Schedule(_DIFFUSERS),
}
IMAGE_FORMATS = {  # jpeg is without chroma subsampling
    "jpeg": ImageFormat("jpg", "JPEG", bytes_per_pixel=0.6, options={"subsampling": 0}, has_quality=True),
    "webp": ImageFormat("webp", "WEBP", bytes_per_pixel=0.6, has_quality=True),
    "webp_lossless": ImageFormat("webp", "WEBP", bytes_per_pixel=2.0, options={"lossless": True}),
    "png": ImageFormat("png", "PNG", bytes_per_pixel=2.0),
}
_MEASURES = "omnitune.evaluation.measures"
_ENCODERS = "omnitune.evaluation.measures.encoders"
MEASURES = Measures(
    {
        "psnr": Measure(f"{_MEASURES}.pixels:psnr", "PSNR (dB)", digits=2, headline=4),
        "ssim": Measure(f"{_MEASURES}.pixels:ssim", "SSIM", headline=5),
        "identity": Measure(f"{_MEASURES}.edits:identity", "kept outside the edit (dB)", digits=2),
        "shift": Measure(f"{_MEASURES}.edits:shift", "shift (px)", higher_is_better=False, digits=2),
        "zoom": Measure(f"{_MEASURES}.edits:zoom", "zoom (%)", higher_is_better=False, digits=2),
        "clip": Measure(f"{_MEASURES}.models:clip", "CLIP", digits=2, model=f"{_ENCODERS}:load_text_image"),
        "siglip": Measure(f"{_MEASURES}.models:siglip", "SigLIP", digits=2, model=f"{_ENCODERS}:load_text_image"),
        "dino": Measure(f"{_MEASURES}.models:dino", "DINO to inputs", digits=2, model=f"{_ENCODERS}:load_image"),
        "preference": Measure(
            f"{_MEASURES}.models:preference", "preference", digits=2, model=f"{_ENCODERS}:load_text_image"
        ),
        "aesthetic": Measure(
            f"{_MEASURES}.models:aesthetic", "aesthetic", model=f"{_ENCODERS}:load_classifier", has_label=True
        ),
        "fid": Measure(
            f"{_MEASURES}.sets:fid",
            "FID",
            higher_is_better=False,
            digits=2,
            model=f"{_ENCODERS}:load_image",
            of_set=True,
        ),
        "kid": Measure(
            f"{_MEASURES}.sets:kid",
            "KID x 1000",
            higher_is_better=False,
            digits=2,
            model=f"{_ENCODERS}:load_image",
            of_set=True,
        ),
        "loss": Measure(f"{_MEASURES}.measure:loss", "held-out loss", higher_is_better=False, headline=3),
        "check_shape": Measure(None, "shape right", share=True),
        "check_color": Measure(None, "colour right", share=True),
        "check_position": Measure(None, "position right", share=True),
        "check_background": Measure(None, "background right", share=True),
        "check_passed": Measure(None, "picture right", share=True, headline=1),
    }
)
CHECKS = {
    "demo_scene": Check("omnitune.demo.check:check_scene", "omnitune.demo.expectation:Expectation"),
}
_FORMATS = "omnitune.evaluation.formats"
PROMPT_FORMATS = {
    "our": PromptFormat(),
    "geneval": PromptFormat(f"{_FORMATS}.geneval:read", f"{_FORMATS}.geneval:lay_out"),
    "dpg": PromptFormat(f"{_FORMATS}.dpg:read", f"{_FORMATS}.dpg:lay_out", draws=(1, 4)),
    "gedit": PromptFormat(f"{_FORMATS}.gedit:read", f"{_FORMATS}.gedit:lay_out", draws=(1,), has_languages=True),
    "imgedit": PromptFormat(f"{_FORMATS}.imgedit:read", f"{_FORMATS}.imgedit:lay_out", draws=(1,)),
    "omnicontext": PromptFormat(
        f"{_FORMATS}.omnicontext:read", f"{_FORMATS}.omnicontext:lay_out", draws=(1,), has_languages=True
    ),
}
