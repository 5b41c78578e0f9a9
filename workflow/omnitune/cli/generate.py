"""`omnitune generate`: the options of the published inference script, and more."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from omnitune.cli.options import Dtype, PrivateNetworks, flag, option
from omnitune.config.base import MAX_SEED


class Scheduler(StrEnum):
    """Samplers."""

    EULER = "euler"
    DPMSOLVER = "dpmsolver++"


# What to draw
ModelPath = Annotated[str, option("model_path", "Pipeline folder or repository id.")]
Instruction = Annotated[
    str | None, option("instruction", 'What to draw or to change. Default: "A dog running in the park".')
]
Prompts = Annotated[
    Path | None,
    option("prompts", "Draw all instructions of this .txt (one a line) or .jsonl; a killed run goes on when repeated."),
]
BatchSize = Annotated[int, option("batch_size", "With --prompts: instructions drawn together.", min=1)]
InputImagePaths = Annotated[
    list[str] | None,
    option("input_image_path", "Input images (several paths or URLs may follow), or a folder of them."),
]
OutputImagePath = Annotated[
    Path | None,
    option(
        "output_image_path",
        "Image to write, output.png by default; of several, these side by side. With --prompts: folder to write.",
    ),
]

# How it is drawn
InferenceSteps = Annotated[int, option("num_inference_step", "Sampling steps.")]
Height = Annotated[int, option("height", "Height in pixels.")]
Width = Annotated[int, option("width", "Width in pixels.")]
TextGuidanceScale = Annotated[
    float, option("text_guidance_scale", "Guidance towards the instruction; 1 is no guidance at all.")
]
ImageGuidanceScale = Annotated[float, option("image_guidance_scale", "Guidance towards the inputs; 1 is none.")]
CfgRangeStart = Annotated[float, option("cfg_range_start", "First fraction of the steps with guidance.")]
CfgRangeEnd = Annotated[float, option("cfg_range_end", "Last fraction of the steps with guidance.")]
NegativePrompt = Annotated[str | None, option("negative_prompt", "What to lead away from. Default: the published one.")]
ImagesPerPrompt = Annotated[int, option("num_images_per_prompt", "Images to draw.", min=1)]
MaxInputImagePixels = Annotated[int, option("max_input_image_pixels", "Limit of each input image in pixels.", min=256)]
MaxInputSideLength = Annotated[
    int, option("max_input_image_side_length", "Limit of an input image's longer side in pixels.", min=16)
]
MaxPixels = Annotated[int, option("max_pixels", "Limit of the image in pixels while it is made.", min=256)]
DisableAlignRes = Annotated[
    bool, flag("disable_align_res", "Height and width hold for an image of one input, too, not the input's size.")
]

# With which weights
TransformerPath = Annotated[Path | None, option("transformer_path", "Fine-tuned transformer folder.")]
AdapterPaths = Annotated[
    list[Path] | None, option("transformer_lora_path", "LoRA folder or file (several may follow).")
]
AdapterScales = Annotated[
    list[float] | None, option("transformer_lora_scale", "Strength of each LoRA, in their order. Default: 1.")
]

# How the sampler runs
Sampler = Annotated[Scheduler, option("scheduler", "Sampler.")]
Seed = Annotated[int, option("seed", "Seed of the starting noise.", min=0, max=MAX_SEED)]
Precision = Annotated[Dtype, option("dtype", "Precision of the weights.")]

# Memory and speed
ModelOffload = Annotated[bool, flag("enable_model_cpu_offload", "Keep one model at a time on the GPU.")]
SequentialOffload = Annotated[
    bool, flag("enable_sequential_cpu_offload", "Keep one layer at a time on the GPU: least memory, slowest.")
]
GroupOffload = Annotated[
    bool, flag("enable_group_offload", "Keep a few blocks at a time on the GPU, the next ones on their way.")
]
Teacache = Annotated[
    bool, flag("enable_teacache", "Leave layers out in steps that change little (TeaCache): faster, not exact.")
]
TeacacheThreshold = Annotated[
    float, option("teacache_rel_l1_thresh", "From which change on TeaCache runs them again.", min=0)
]
Taylorseer = Annotated[
    bool, flag("enable_taylorseer", "Foretell layers in two of three steps (TaylorSeer): faster, not exact.")
]


def generate(
    model_path: ModelPath,
    instruction: Instruction = None,
    prompts: Prompts = None,
    batch_size: BatchSize = 1,
    input_image_path: InputImagePaths = None,
    output_image_path: OutputImagePath = None,
    num_inference_step:
    # How it is drawn
    InferenceSteps = 50,
    height: Height = 1024,
    width: Width = 1024,
    text_guidance_scale: TextGuidanceScale = 5.0,
    image_guidance_scale: ImageGuidanceScale = 2.0,
    cfg_range_start: CfgRangeStart = 0.0,
    cfg_range_end: CfgRangeEnd = 1.0,
    negative_prompt: NegativePrompt = None,
    num_images_per_prompt: ImagesPerPrompt = 1,
    max_input_image_pixels: MaxInputImagePixels = 1048576,
    max_input_image_side_length: MaxInputSideLength = 1024,
    max_pixels: MaxPixels = 1048576,
    disable_align_res: DisableAlignRes = False,
    transformer_path:
    # With which weights
    TransformerPath = None,
    transformer_lora_path: AdapterPaths = None,
    transformer_lora_scale: AdapterScales = None,
    scheduler: Sampler = Scheduler.EULER,
    seed: Seed = 0,
    dtype: Precision = Dtype.BF16,
    enable_model_cpu_offload:
    # Memory and speed
    ModelOffload = False,
    enable_sequential_cpu_offload: SequentialOffload = False,
    enable_group_offload: GroupOffload = False,
    enable_teacache: Teacache = False,
    teacache_rel_l1_thresh: TeacacheThreshold = 0.05,
    enable_taylorseer: Taylorseer = False,
    private_network: PrivateNetworks = None,
) -> None:
    """Draw or edit an image, or a list of them, with the base model or with fine-tuned weights."""
    settings: dict[str, Any] = dict(locals())
    from omnitune.evaluation.sample import Asked, generate_images

    generate_images(Asked(**settings))
