"""Benchmark files: an evaluation protocol that is pinned, so that scores can be compared."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from omnitune.config.affects import NAMES, NOTHING, Affects
from omnitune.config.base import PathText, Section, Seed
from omnitune.config.benchmarks.judge import Judge
from omnitune.config.benchmarks.measure import NAMED, MeasureEntry
from omnitune.config.choices import CHECKS, JUDGED, MEASURES, PROMPT_FORMATS, OneOf, judge_measure
from omnitune.paths import EvaluatedStep

BASELINE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
OWN_NAMES = ("base", "input", "target")  # of other images in the report


class Benchmark(Section):
    """An evaluation protocol: prompts, sampling settings and measures."""

    prompts: Annotated[
        PathText,
        Field(
            description="A .jsonl file, one prompt a line: `key` (unique), `task_type`, `instruction`, optional "
            "`input_images`, `output_image` (the target), `category` (by which scores are told apart in place of the "
            "task type), `height` and `width`, and `expect` (the known scene, for `check: demo_scene`). Image paths as "
            "in samples. Or the file or folder of another `format`."
        ),
        NAMES,
    ]
    format: Annotated[
        Annotated[str, OneOf(PROMPT_FORMATS)],
        Field(
            description="What `prompts` is. `our`: the .jsonl above. As published: `geneval` "
            "(evaluation_metadata.jsonl), `dpg` (folder of .txt), `gedit` and `omnicontext` (parquet, or a folder that "
            "Hugging Face datasets has saved, images inside), `imgedit` (.json; images below image_root)."
        ),
        NAMES,
    ] = "our"
    language: Annotated[
        Annotated[str, Field(pattern=r"[A-Za-z][A-Za-z_-]{0,19}")] | None,
        Field(
            description="Of `gedit` and `omnicontext`: rows of this instruction_language alone (`en`, `cn`). null: all."
        ),
        NAMES,
    ] = None
    image_root: Annotated[
        PathText | None,
        Field(
            description="Folder below which alone the prompts' images may lie, links followed. null: below the working "
            "directory and the prompts' own folder. Of `imgedit`: the folder of the originals; null: that of the .json."
        ),
        NOTHING,
    ] = None
    seed: Annotated[
        Seed | Annotated[list[Seed], Field(min_length=1, max_length=100)],
        Field(
            description="Seed of the starting noise, below 2^63; each prompt derives its own from it. A list: each "
            "prompt is drawn with each."
        ),
        Affects("images"),
    ] = 0
    images_per_prompt: Annotated[
        int, Field(ge=1, le=100, description="Images of each prompt and seed, from different noise."), Affects("images")
    ] = 1
    num_inference_steps: Annotated[int, Field(ge=1, description="Sampling steps."), Affects("images")] = 50
    scheduler: Annotated[Literal["euler", "dpmsolver++"], Field(description="Sampler."), Affects("images")] = "euler"
    text_guidance_scale: Annotated[
        float, Field(ge=1, description="Guidance towards the instruction; 1 is no guidance at all."), Affects("images")
    ] = 5.0
    image_guidance_scale: Annotated[
        float, Field(ge=1, description="Guidance towards the references; 1 is none."), Affects("images")
    ] = 2.0
    cfg_range: Annotated[
        tuple[float, float],
        Field(description="First and last fraction of the steps in which guidance is used."),
        Affects("images"),
    ] = (0.0, 1.0)
    negative_prompt: Annotated[
        str | None,
        Field(description="What guidance leads away from. null: the published long negative prompt."),
        Affects("images"),
    ] = None
    height: Annotated[
        int,
        Field(ge=16, multiple_of=16, description="Height of images in pixels, where neither prompt nor input sets it."),
        Affects("images"),
    ] = 1024
    width: Annotated[
        int,
        Field(ge=16, multiple_of=16, description="Width of images in pixels, where neither prompt nor input sets it."),
        Affects("images"),
    ] = 1024
    align_res: Annotated[
        bool,
        Field(description="An image with exactly one input has the input's size, within the limits."),
        Affects("images"),
    ] = True
    max_pixels: Annotated[
        int,
        Field(ge=256, description="Limit of input and output images in pixels (width x height)."),
        Affects("images"),
    ] = 1048576
    max_input_pixels: Annotated[
        int | None,
        Field(ge=256, description="Another limit of input images in pixels. null: max_pixels."),
        Affects(images=lambda benchmark, pixels: pixels),
    ] = None
    max_side_length: Annotated[
        int, Field(ge=16, description="Limit of an input image's longer side in pixels."), Affects("images")
    ] = 1024
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], Field(description="Precision of the weights when sampling."), Affects("images")
    ] = "bf16"
    batch_size: Annotated[
        int, Field(ge=1, description="Prompts sampled together; changes no image beyond rounding."), NOTHING
    ] = 1
    export: Annotated[
        Literal["official"] | None,
        Field(
            description="`official`: writes the images a second time, as the scorer of the `format` reads them, to "
            "experiments/{experiment}/evaluation/{step}/{benchmark}/official."
        ),
        Affects("evaluations"),
    ] = None
    parts: Annotated[int, Field(ge=1, description="Into how many jobs the prompts are split."), Affects("parts")] = 1
    loss_timesteps: Annotated[
        int,
        Field(
            ge=0,
            description="Held-out flow-matching loss: at how many fixed times it is taken for each prompt with a "
            "target. 0: not.",
        ),
        Affects("images"),
    ] = 8
    check: Annotated[
        Annotated[str, OneOf(CHECKS)] | None,
        Field(
            description="A check of what pictures show. `demo_scene`: shape, colour, place and background in the demo."
        ),
        Affects("scores"),
    ] = None

    primary: Annotated[
        str | None,
        Field(
            description="The measure that the report's verdict is about, judge_{name}_instruction and the like among "
            "them. null: `check_passed` with a check, or else the first that the prompts have of `loss`, `psnr` and "
            "`ssim`."
        ),
        Affects("reports"),
    ] = None
    measures: Annotated[
        list[MeasureEntry] | None,
        Field(
            description="What is measured beside the check: names, or {name, model} of those that need a model. null: "
            "all that need none. docs/measures.md has each."
        ),
        Affects("scores"),
    ] = None
    judges: Annotated[
        list[Judge],
        Field(description="Models that score the images. docs/measures.md says how they are asked."),
        # An endpoint that has moved, and how fast it is asked, change no answer.
        Affects(
            judgements=lambda section, judges: [judge.asked for judge in judges] or None,
            scores=lambda section, judges: [{**judge.asked, "labels": judge.labels} for judge in judges] or None,
        ),
    ] = []

    baselines: Annotated[
        dict[str, PathText],
        Field(
            description="Rows beside the base and the checkpoints, by the name that they have in the report: folders "
            "of other pipelines, or of transformers in the published layout, which take the place of the base's. "
            "`published: models/OmniGen2`. Experiments from one base model share their images."
        ),
        Affects("evaluations"),
    ] = {}

    def evaluates(self, step: EvaluatedStep) -> bool:
        """Whether these weights are a row of this benchmark: all are but for baselines of others."""
        return not step.baseline or step.baseline in self.baselines

    @model_validator(mode="after")
    def _baselines_have_names(self) -> Self:
        for name in self.baselines:
            if not BASELINE_NAME.fullmatch(name) or name in OWN_NAMES:
                raise ValueError(
                    f"baselines: {name!r} is not allowed as a name: take letters, digits, `_`, `.` and `-`, a letter "
                    f"first, and none of {', '.join(OWN_NAMES)}"
                )
        return self

    @property
    def measured(self) -> list[MeasureEntry]:
        """The measures that are asked for, in the order of their table."""
        if self.measures is None:
            return [MeasureEntry(name=name) for name in NAMED if MEASURES[name].model is None]
        return sorted(self.measures, key=lambda entry: NAMED.index(entry.name))

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.name for entry in self.measures or ()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"measures: {', '.join(twice)} stands there twice; take one out")
        judges = [judge.name.casefold() for judge in self.judges]
        if len(set(judges)) < len(judges):
            raise ValueError("judges: two have one name; rename one")
        return self

    @model_validator(mode="after")
    def _primary_is_measured(self) -> Self:
        if self.primary is None:
            return self
        if self.primary == "loss" and not self.loss_timesteps:
            raise ValueError(
                "primary: 'loss' is not measured with loss_timesteps: 0; raise that, or take another measure"
            )
        checked = [name for name, entry in MEASURES.items() if entry.function is None]
        if self.primary in checked and self.check is None:
            raise ValueError(f"primary: {self.primary!r} is a figure of a check; set check, or take another measure")
        judged = [judge_measure(judge.name, score) for judge in self.judges for score in JUDGED]
        if self.primary in MEASURES and MEASURES[self.primary].of_set:
            raise ValueError(
                f"primary: {self.primary!r} is of all images together, and has no interval; take another measure"
            )
        single = [entry.name for entry in self.measured if not MEASURES[entry.name].of_set]
        known = [*single, *(checked if self.check else ()), *judged]
        if self.primary not in known:
            raise ValueError(f"primary: {self.primary!r} is not measured here; what is: {', '.join(known)}")
        return self

    def judge(self, name: str) -> Judge:
        """That of its judges."""
        return next(judge for judge in self.judges if judge.name == name)

    @property
    def seeds(self) -> list[int]:
        """Those that each prompt is drawn with."""
        return self.seed if isinstance(self.seed, list) else [self.seed]

    @property
    def draws(self) -> int:
        """How many images each prompt has."""
        return len(self.seeds) * self.images_per_prompt

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seed: {self.seed} is not allowed: needs seeds that differ")
        return self

    @model_validator(mode="after")
    def _format_fits(self) -> Self:
        form = PROMPT_FORMATS[self.format]
        if self.language and not form.has_languages:
            raise ValueError(f"language: rows of `format: {self.format}` name none. Take the key out")
        if self.export and not form.layout:
            known = ", ".join(name for name, entry in PROMPT_FORMATS.items() if entry.layout)
            raise ValueError(f"export: `format: {self.format}` has no official scorer; those that have: {known}")
        if self.export and form.draws and self.draws not in form.draws:
            wanted = " or ".join(map(str, form.draws))
            raise ValueError(
                f"export: the scorer of `format: {self.format}` reads {wanted} images of a prompt, not {self.draws} "
                "(images_per_prompt x seeds). Change these, or take `export` out"
            )
        return self

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        start, end = self.cfg_range
        if not 0 <= start <= end <= 1:
            raise ValueError(f"cfg_range: {list(self.cfg_range)} is not allowed: needs 0 <= first <= last <= 1")
        return self
