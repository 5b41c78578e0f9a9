"""`omnitune <stage>`: every stage of the workflow as a command, with the same code as its rule."""

import logging
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from omnitune.config import Benchmark, load_config
from omnitune.config.base import MAX_SEED
from omnitune.config.choices import IMAGE_FORMATS
from omnitune.config.yaml_file import read_yaml
from omnitune.console import job
from omnitune.evaluation.foreign import as_imported
from omnitune.paths import COMPARISON, COMPARISON_TABLE, INDEX, SCORES, VOTES, EvaluatedStep, file_stem
from omnitune.project import Project
from omnitune.stages import Experiment, compare_experiments, prepare_prompts

logger = logging.getLogger("omnitune")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune OmniGen2. `snakemake --cores 2` runs the whole workflow; these commands run its stages one by one.",
)

EmaOption = Annotated[bool, typer.Option("--ema", help="The average of the weights (train.ema_decay) in their place.")]
PrivateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--private_network",
        "--private-network",
        help="Address or network (10.1.0.0/16) that URLs may lead to although it is not public; may be given several times.",
    ),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="Options file of the experiment (config/options/*.yml).")]
WorkflowConfigOption = Annotated[Path, typer.Option("--config", help="The workflow's config.")]


def option(name: str, text: str, **settings: Any) -> Any:
    """An option under its published name, with underscores, and with dashes as well; `settings` are typer's."""
    dashed = name.replace("_", "-")
    return typer.Option(*dict.fromkeys([f"--{name}", f"--{dashed}"]), help=text, **settings)


def flag(name: str, text: str) -> Any:
    """The same of one that is given without a value."""
    return typer.Option(f"--{name}", f"--{name.replace('_', '-')}", help=text)


class Scheduler(StrEnum):
    """Samplers."""

    EULER = "euler"
    DPMSOLVER = "dpmsolver++"


class Format(StrEnum):
    """Formats of converted weights."""

    DIFFUSERS = "diffusers"
    COMFYUI = "comfyui"
    MERGED = "merged"
    PIPELINE = "pipeline"


class Dtype(StrEnum):
    """Precisions of the weights."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


@app.command()
def validate(
    mixture: Annotated[Path, typer.Argument(help="Mixture file (.yml).")],
    output: Annotated[
        Path,
        option("output", "Folder to write: samples.parquet, rejected.jsonl, summary.json, and shards/ to shard from."),
    ],
    depth: Annotated[
        Literal["header", "full"],
        option("depth", "full decodes and hashes every image; header reads the first bytes for format, size and mode."),
    ] = "full",
    max_reject_fraction: Annotated[
        float,
        option("max_reject_fraction", "Exit with an error above this share of rejected rows, 0 to 1.", min=0, max=1),
    ] = 0.01,
    tokenizer: Annotated[
        Path | None,
        option(
            "tokenizer", "Pipeline folder whose tokenizer counts the instructions' tokens. Without it none are counted."
        ),
    ] = None,
    maximum_text_tokens: Annotated[
        int,
        option(
            "maximum_text_tokens", "With --tokenizer: reject instructions of more tokens, the chat included.", min=1
        ),
    ] = 888,
    max_image_pixels: Annotated[
        int, option("max_image_pixels", "Reject images of more pixels as decompression bombs.", min=1)
    ] = 178956970,
    image_root: Annotated[
        str | None, option("image_root", "Reject images that do not lie below this folder or URL.")
    ] = None,
    source_root: Annotated[
        list[str] | None,
        option(
            "source_root",
            "Read samples below this folder or URL alone; may be given several times. "
            "Without it: below the working directory and the mixture's own folder, and at any URL.",
        ),
    ] = None,
    private_network: PrivateOption = None,
    samples_per_shard: Annotated[
        int, option("samples_per_shard", "Rows of a source that go into one tar.", min=1)
    ] = 1000,
    workers: Annotated[int, option("workers", "Processes that look at images.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Check every row and image of a mixture; rejected ones go to a ledger with their reasons.

    Prints a summary, and exits with an error where more rows are rejected than allowed; the ledger is kept in
    OUTPUT.failed then.
    """
    from rich.console import Console

    from omnitune.config.urls import UrlOptions
    from omnitune.validation.dataset import RejectedTooMany
    from omnitune.validation.source import Checks, validate_mixture
    from omnitune.validation.summary import summary_tables

    if tokenizer and not (tokenizer / "processor").is_dir() and not (tokenizer / "mllm").is_dir():
        raise ValueError(f"--tokenizer: {tokenizer} is no pipeline folder: it has neither processor/ nor mllm/.")
    checks = Checks(
        depth,
        max_image_pixels,
        image_root,
        maximum_text_tokens,
        tokenizer=str(tokenizer) if tokenizer else None,
        urls=UrlOptions(private_networks=private_network or []).limits,
        source_roots=tuple(source_root or ()),
    )
    limits: dict[str, Any] = {"max_reject_fraction": max_reject_fraction, "samples_per_shard": samples_per_shard}
    try:
        summary = validate_mixture(mixture, output, checks, workers=workers, source_roots=source_root or None, **limits)
    except RejectedTooMany as error:
        Console().print(*summary_tables(error.summary), sep="\n")
        raise
    Console().print(*summary_tables(summary), sep="\n")


@app.command()
def shard(
    validated: Annotated[Path, option("validated", "Folder that `omnitune validate` wrote.")],
    output: Annotated[Path, option("output", "Folder for the tars, their indexes, index.parquet and index.arrow.")],
    max_output_pixels: Annotated[
        int, option("max_output_pixels", "Limit of output images in pixels.", min=256)
    ] = 1048576,
    max_input_pixels: Annotated[
        str, option("max_input_pixels", "Limit of input images, or limits for 1, 2, .. inputs: N[,N..].")
    ] = "1048576,1048576,589824,262144",
    max_side_length: Annotated[int, option("max_side_length", "Limit of any side in pixels.", min=16)] = 2048,
    image_format: Annotated[
        str,
        option(
            "image_format",
            "Format of images that have to be changed; others keep their bytes.",
            metavar=f"<{'|'.join(IMAGE_FORMATS)}>",
        ),
    ] = "jpeg",
    image_quality: Annotated[int, option("image_quality", "Quality of jpeg and webp.", min=1, max=100)] = 95,
    tars: Annotated[
        str | None, option("tars", "URL to write the tars below, instead of into OUTPUT (s3://bucket/folder).")
    ] = None,
    image_root: Annotated[
        str | None, option("image_root", "As it was validated with: URL below which redirects of images must stay.")
    ] = None,
    private_network: PrivateOption = None,
    workers: Annotated[int, option("workers", "Processes.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Write validated samples into WebDataset tars under the pixel limits, and index them."""
    from omnitune.config.urls import UrlOptions
    from omnitune.sharding.shard import ImageLimits, shard_dataset

    try:
        inputs = [int(word) for word in max_input_pixels.split(",")]
    except ValueError:
        inputs = [0]
    if min(inputs) < 256:
        raise ValueError(
            f"--max_input_pixels: {max_input_pixels!r} is not allowed; give numbers of at least 256, as in 1048576,589824."
        )
    limits = ImageLimits(max_output_pixels, inputs, max_side_length, image_format, image_quality)
    urls = UrlOptions(private_networks=private_network or []).limits
    shard_dataset(validated, output, limits, workers=workers, tars=tars, urls=urls, image_root=image_root)


@app.command()
def encode(
    config: ConfigOption,
    num_processes: Annotated[
        int, option("num_processes", "Processes. 0: one for each GPU of this machine, or one without any.")
    ] = 0,
    num_threads: Annotated[
        int, option("num_threads", "CPU threads of each process. 0: all of the machine's, shared.")
    ] = 0,
    base: Annotated[Path | None, option("base", "Base pipeline folder, if not the workflow's.")] = None,
    index: Annotated[
        Path | None, option("index", "index.parquet of the shards, if not prepared/{dataset}/shards.")
    ] = None,
    output: Annotated[
        Path | None, option("output", "Folder to write, if not prepared/{dataset}/encoded/{model}.")
    ] = None,
) -> None:
    """Encode the shards of an experiment's data set, but for those that are encoded already."""
    import torch

    from omnitune.distributed.processes import Topology
    from omnitune.encoding.encode import encode_dataset

    experiment = Experiment.alone(config)
    processes = num_processes or torch.cuda.device_count() or 1
    threads = num_threads or max((os.cpu_count() or 1) // processes, 1)
    files = experiment.encoding_files(base=base, output=output)
    topology = Topology(processes, threads_per_process=threads)
    encode_dataset(experiment.options, files, index or experiment.path(INDEX), topology)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="Options file of the experiment (config/options/*.yml).")],
    samples_per_second: Annotated[
        float | None,
        option("samples_per_second", "Rate over all processes, if not what the experiment's own steps took.", min=1e-9),
    ] = None,
    gpu_memory_gb: Annotated[
        float | None,
        option("gpu_memory_gb", "Memory of each GPU in 10^9 bytes, if not that of this machine's.", min=0.1),
    ] = None,
    nodes: Annotated[int, option("nodes", "Nodes that the processes run on.", min=1)] = 1,
    index: Annotated[
        Path | None, option("index", "index.parquet of the shards, if not prepared/{dataset}/shards.")
    ] = None,
) -> None:
    """Say what a training will take, from its options and the shards' index: memory, epochs, disk, hours.

    Needs neither a GPU nor weights nor, for a first estimate from the limits of the options, shards.

    Where it does not fit, says what to change.
    """
    from rich.console import Console

    from omnitune.planning.plan import Rate, plan_experiment
    from omnitune.planning.tables import plan_tables, plan_warnings

    rate = Rate(samples_per_second, "--samples_per_second") if samples_per_second else None
    found = plan_experiment(config, index, nodes=nodes, gpu_memory_gb=gpu_memory_gb, rate=rate)
    console = Console()
    console.print(*plan_tables(found), sep="\n")
    for warning in plan_warnings(found):
        console.print(f"Note: {warning}", soft_wrap=True)


@app.command()
def train(
    config: ConfigOption,
    num_processes: Annotated[
        int, option("num_processes", "Training processes on all nodes. 0: as many as the batch sizes say.")
    ] = 0,
    rank: Annotated[int, option("rank", "Number of this node, from 0.")] = 0,
    world_size: Annotated[int, option("world_size", "Number of nodes.")] = 1,
    master_addr: Annotated[str, option("master_addr", "Host name or address of node 0.")] = "127.0.0.1",
    master_port: Annotated[int, option("master_port", "Port on node 0. 0: a free one, on a single node.")] = 0,
    num_threads: Annotated[int, option("num_threads", "CPU threads of each process.")] = 1,
    slurm: Annotated[bool, typer.Option("--slurm", help="Read --rank from SLURM_NODEID (inside srun).")] = False,
    base: Annotated[Path | None, option("base", "Base pipeline folder, if not the workflow's.")] = None,
    transformer: Annotated[
        Path | None, option("transformer", "Transformer folder to start from, if not the workflow's.")
    ] = None,
    index: Annotated[
        Path | None, option("index", "index.parquet of the shards, if not prepared/{dataset}/shards.")
    ] = None,
    encoded: Annotated[
        Path | None, option("encoded", "Encoded data (data.encode), if not prepared/{dataset}/encoded/{model}.")
    ] = None,
    output: Annotated[Path | None, option("output", "Experiment's folder, if not experiments/{name}.")] = None,
) -> None:
    """Train an experiment on prepared data, or go on with it; several nodes each run this command with their --rank."""
    from omnitune.distributed.processes import Topology
    from omnitune.launching.job import launch_task
    from omnitune.launching.launch import launch

    experiment = Experiment.alone(config)
    processes = num_processes or experiment.options.train.num_processes
    if processes % world_size:
        raise ValueError(f"--num_processes: {processes} is no multiple of --world_size {world_size} nodes.")
    if slurm and "SLURM_NODEID" not in os.environ:
        raise ValueError("--slurm: SLURM_NODEID is not set; give this option only to commands that srun starts.")
    node = int(os.environ["SLURM_NODEID"]) if slurm else rank
    files = experiment.training_files(base=base, transformer=transformer, index=index, encoded=encoded, output=output)
    topology = Topology(processes // world_size, world_size, node, master_addr, master_port, num_threads)
    run_node = launch_task if slurm else launch
    run_node(experiment.options, files, topology)


@app.command()
def convert(
    config_path: Annotated[Path, option("config_path", "Options file of the experiment.")],
    model_path: Annotated[Path, option("model_path", "Checkpoint: checkpoint-N/, a .bin or a .safetensors file.")],
    save_path: Annotated[
        Path,
        option(
            "save_path",
            "Folder to write, by custom checkpoint-N/transformer or transformer_lora, and _ema of averages.",
        ),
    ],
    ema: EmaOption = False,
    transformer: Annotated[
        Path | None, option("transformer", "Transformer folder that training started from, if not the workflow's.")
    ] = None,
    base: Annotated[
        Path | None, option("base", "Base pipeline folder (--format pipeline), if not the workflow's.")
    ] = None,
    weight_format: Annotated[Format, option("format", "What to write.")] = Format.DIFFUSERS,
    dtype: Annotated[
        Dtype | None, option("dtype", "Precision of the written weights. Default: convert.dtype of the options.")
    ] = None,
    max_shard_size: Annotated[
        str | None, option("max_shard_size", "Of a weight file, as in 5GB. Default: convert.max_shard_size.")
    ] = None,
    scale: Annotated[float, option("scale", "Strength of an adapter that is merged.")] = 1.0,
) -> None:
    """Convert a training checkpoint for other programs, account for every key and verify what was written."""
    from omnitune.conversion.export import convert as convert_checkpoint
    from omnitune.conversion.write import Target

    experiment = Experiment.alone(config_path)
    start, asked = transformer or experiment.start.transformer, experiment.options.convert
    precision, size = dtype.value if dtype else asked.dtype, max_shard_size or asked.max_shard_size
    target = Target(weight_format.value, precision, size, base or experiment.start.base)
    report = convert_checkpoint(experiment.options, model_path, save_path, start, ema=ema, target=target, scale=scale)
    logger.info("wrote %s: %s, %d tensors, %s, verified", save_path, report["kind"], report["keys"], report["dtype"])


@app.command()
def merge(
    transformer: Annotated[Path, option("transformer", "Transformer folder that the adapters are merged into.")],
    lora: Annotated[list[Path], option("lora", "Adapter, file or folder, of any tool; may be given several times.")],
    save_path: Annotated[Path, option("save_path", "Folder to write.")],
    scale: Annotated[
        list[float] | None, option("scale", "Strength of each adapter, in their order. Default: 1.")
    ] = None,
    weight_format: Annotated[Format, option("format", "merged, comfyui or pipeline.")] = Format.MERGED,
    dtype: Annotated[
        Dtype | None, option("dtype", "Precision of the written weights. Default: the transformer's.")
    ] = None,
    max_shard_size: Annotated[str, option("max_shard_size", "Of a weight file, as in 5GB.")] = "10GB",
    base: Annotated[Path | None, option("base", "Base pipeline folder, for --format pipeline.")] = None,
) -> None:
    """Merge one or several adapters into a transformer, and verify what was written."""
    from omnitune.conversion.merge import merge as merge_adapters
    from omnitune.conversion.write import Target

    if weight_format == Format.DIFFUSERS:
        raise ValueError("--format: diffusers keeps an adapter apart; take merged, comfyui or pipeline.")
    target = Target(weight_format.value, dtype.value if dtype else None, max_shard_size, base)
    merge_adapters(transformer, lora, scale or [], save_path, target)
    logger.info("wrote %s: verified", save_path)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Checkpoint, transformer, pipeline or adapter: a folder or a file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what weights are and which programs load them, from their headers alone; runs no code of theirs."""
    import json

    from omnitune.conversion.inspect import inspect as inspect_weights

    facts = inspect_weights(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, value in facts.items():
        text = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else text
        typer.echo(f"{name + ':':<18}{'none' if text is None else text}")


@app.command()
def generate(
    model_path: Annotated[str, option("model_path", "Pipeline folder or repository id.")],
    instruction: Annotated[
        str | None, option("instruction", 'What to draw or to change. Default: "A dog running in the park".')
    ] = None,
    prompts: Annotated[
        Path | None,
        option(
            "prompts", "Draw all instructions of this .txt (one a line) or .jsonl; a killed run goes on when repeated."
        ),
    ] = None,
    batch_size: Annotated[int, option("batch_size", "With --prompts: instructions drawn together.", min=1)] = 1,
    input_image_path: Annotated[
        list[str] | None,
        option("input_image_path", "Input images (several paths or URLs may follow), or a folder of them."),
    ] = None,
    output_image_path: Annotated[
        Path | None,
        option(
            "output_image_path",
            "Image to write, output.png by default; of several, these side by side. With --prompts: folder to write.",
        ),
    ] = None,
    num_inference_step: Annotated[int, option("num_inference_step", "Sampling steps.")] = 50,
    height: Annotated[int, option("height", "Height in pixels.")] = 1024,
    width: Annotated[int, option("width", "Width in pixels.")] = 1024,
    text_guidance_scale: Annotated[
        float, option("text_guidance_scale", "Guidance towards the instruction; 1 is no guidance at all.")
    ] = 5.0,
    image_guidance_scale: Annotated[
        float, option("image_guidance_scale", "Guidance towards the inputs; 1 is none.")
    ] = 2.0,
    cfg_range_start: Annotated[float, option("cfg_range_start", "First fraction of the steps with guidance.")] = 0.0,
    cfg_range_end: Annotated[float, option("cfg_range_end", "Last fraction of the steps with guidance.")] = 1.0,
    negative_prompt: Annotated[
        str | None, option("negative_prompt", "What to lead away from. Default: the published one.")
    ] = None,
    num_images_per_prompt: Annotated[int, option("num_images_per_prompt", "Images to draw.", min=1)] = 1,
    max_input_image_pixels: Annotated[
        int, option("max_input_image_pixels", "Limit of each input image in pixels.", min=256)
    ] = 1048576,
    transformer_path: Annotated[Path | None, option("transformer_path", "Fine-tuned transformer folder.")] = None,
    transformer_lora_path: Annotated[
        list[Path] | None, option("transformer_lora_path", "LoRA folder or file (several may follow).")
    ] = None,
    transformer_lora_scale: Annotated[
        list[float] | None, option("transformer_lora_scale", "Strength of each LoRA, in their order. Default: 1.")
    ] = None,
    scheduler: Annotated[Scheduler, option("scheduler", "Sampler.")] = Scheduler.EULER,
    seed: Annotated[int, option("seed", "Seed of the starting noise.", min=0, max=MAX_SEED)] = 0,
    dtype: Annotated[Dtype, option("dtype", "Precision of the weights.")] = Dtype.BF16,
    enable_model_cpu_offload: Annotated[
        bool, flag("enable_model_cpu_offload", "Keep one model at a time on the GPU.")
    ] = False,
    enable_sequential_cpu_offload: Annotated[
        bool, flag("enable_sequential_cpu_offload", "Keep one layer at a time on the GPU: least memory, slowest.")
    ] = False,
    enable_group_offload: Annotated[
        bool, flag("enable_group_offload", "Keep a few blocks at a time on the GPU, the next ones on their way.")
    ] = False,
    enable_teacache: Annotated[
        bool, flag("enable_teacache", "Leave layers out in steps that change little (TeaCache): faster, not exact.")
    ] = False,
    teacache_rel_l1_thresh: Annotated[
        float, option("teacache_rel_l1_thresh", "From which change on TeaCache runs them again.", min=0)
    ] = 0.05,
    enable_taylorseer: Annotated[
        bool, flag("enable_taylorseer", "Foretell layers in two of three steps (TaylorSeer): faster, not exact.")
    ] = False,
) -> None:
    """Draw or edit an image, or a list of them, with the base model or with fine-tuned weights."""
    settings: dict[str, Any] = dict(locals())
    from omnitune.evaluation.sample import Asked, generate_images

    generate_images(Asked(**settings))


@app.command()
def evaluate(
    config: ConfigOption,
    benchmark: Annotated[Path, option("benchmark", "Benchmark file (config/benchmarks/*.yml).")],
    step: Annotated[int, option("step", "Checkpoint to evaluate; 0 is the base.", min=0)] = 0,
    ema: EmaOption = False,
    lora_scale: Annotated[float, option("lora_scale", "Scale of its adapter.", min=0.01, max=100)] = 1.0,
    num_threads: Annotated[int, option("num_threads", "CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Generate, judge and score a benchmark's images with the base (step 0) or a converted checkpoint."""
    if ema and not step:
        raise ValueError("--ema: the base (--step 0) has no average; name a checkpoint with --step.")
    name = file_stem(benchmark)
    protocol = prepare_prompts(name, load_config(benchmark, Benchmark))
    evaluation = Experiment.alone(config).evaluation(name, protocol, EvaluatedStep(step, ema, lora_scale))
    for part in range(protocol.parts):
        evaluation.generate(part, num_threads)
    for judge in protocol.judges:
        evaluation.judge(judge.name)
    evaluation.score()
    if protocol.export:
        evaluation.export()
    logger.info("scores: %s", evaluation.path(SCORES))


@app.command()
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments of the workflow's config: one, or several, which are compared in one page. "
            "Or the name of a comparison there."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        option("config", "Without names: the options file of an experiment. With names: the workflow's config."),
    ] = None,
    benchmark: Annotated[
        list[Path] | None,
        option(
            "benchmark", "Without names: evaluated benchmark (config/benchmarks/*.yml); may be given several times."
        ),
    ] = None,
    output: Annotated[Path | None, option("output", "HTML file to write, if not the workflow's.")] = None,
) -> None:
    """Build the report of a trained experiment, or one over several: an HTML file, and tables beside it."""
    if names:
        if benchmark:
            raise ValueError("--benchmark: with names, benchmarks are those of the workflow's config.")
        logger.info("report: %s", _report_of(names, config or Path("config/config.yaml"), output))
        return
    if config is None:
        raise ValueError("name experiments of config/config.yaml, or an options file with --config.")
    named = {file_stem(path): load_config(path, Benchmark) for path in benchmark or []}
    protocols = {name: as_imported(name, found) for name, found in named.items()}
    logger.info("report: %s", Experiment.alone(config).report(protocols, output))


def _report_of(names: list[str], config: Path, output: Path | None) -> Path:
    """The page of an experiment, or of a comparison of several."""
    project = Project.load(read_yaml(config), str(config))
    title = "-".join(dict.fromkeys(names))
    known = project.comparisons if len(names) == 1 else {}
    compared = known[title] if title in known else project.compared(names)
    if list(compared) == [title]:
        folders = {step: Path(folder) for step, folder in project.evaluated_folders(title).items()}
        return Experiment.of(project, title).report(project.benchmarks, output, folders)
    page = output or Path(COMPARISON.format(comparison=title))
    compare_experiments(project, title, compared, page, page.parent / Path(COMPARISON_TABLE).name)
    return page


@app.command()
def status(
    experiments: Annotated[list[str] | None, typer.Argument(help="Names of experiments. Default: all.")] = None,
    config: WorkflowConfigOption = Path("config/config.yaml"),
    follow: Annotated[bool, typer.Option("--follow", help="Keep the table fresh, until Ctrl-C.")] = False,
    interval: Annotated[float, option("interval", "With --follow: seconds between two looks.", min=0.5)] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how far each experiment is: stage, step, loss, samples per second, time left, jobs that wait or have failed.

    Reads the files that are there, and asks squeue where SLURM runs the jobs.
    """
    from rich.console import Console

    from omnitune.status.collect import collect_status
    from omnitune.status.show import follow as keep_fresh
    from omnitune.status.show import status_json, status_table

    if follow and as_json:
        raise ValueError("--follow and --json exclude each other; ask for JSON again and again instead.")
    project = Project.load(read_yaml(config), str(config))
    if follow:
        keep_fresh(lambda: collect_status(project, experiments or ()), interval)
    elif as_json:
        typer.echo(status_json(collect_status(project, experiments or ())))
    else:
        Console().print(status_table(collect_status(project, experiments or ())))


@app.command()
def vote(
    one: Annotated[
        str, typer.Argument(help="Row to compare: an experiment, or EXPERIMENT:STEP; without a step its last.")
    ],
    other: Annotated[str, typer.Argument(help="Row to compare it with; EXPERIMENT:0 is the base.")],
    benchmark: Annotated[Path, option("benchmark", "Evaluated benchmark (config/benchmarks/*.yml).")],
    port: Annotated[int, option("port", "Port of the page on this machine. 0: a free one.", min=0, max=65535)] = 0,
) -> None:
    """Let people choose between images of two rows, without saying whose: a page on 127.0.0.1; votes go to votes/.

    Ends when all pairs are judged, or at Ctrl-C; the next call shows what is left. Reports show the outcome.
    """
    from omnitune.evaluation.prompts import read_prompts
    from omnitune.evaluation.vote_server import serve_votes

    name = file_stem(benchmark)
    protocol = as_imported(name, load_config(benchmark, Benchmark))
    inputs = {prompt.key: prompt.input_images for prompt in read_prompts(protocol, Path())}
    typer.echo(serve_votes(one, other, name, inputs, Path(VOTES.format(benchmark=name)), port))


@app.command()
def doctor(
    config: WorkflowConfigOption = Path("config/config.yaml"),
    site: Annotated[
        Path | None,
        option("site", "What the cluster has. Default: workflow/profiles/slurm/site.yaml, where there is SLURM."),
    ] = None,
) -> None:
    """Say what is wrong here before a job waits for hours; exit code 1 where something is.

    Looks at packages, GPUs, disk, file system and config, at SLURM's partitions and limits on a login node, and inside of
    an allocation (`salloc --nodes=2 omnitune doctor`) at whether its nodes share files and reach each other.
    """
    import shutil

    from omnitune.doctor.check import check_all

    own = Path("workflow/profiles/slurm/site.yaml")
    used = site or (own if own.is_file() and shutil.which("sinfo") else None)
    problems = 0
    for found in check_all(config, used):
        problems += found.level == "problem"
        typer.echo(f"{found.level:<8} {found.about}: {found.text}")
    if problems:
        raise ValueError(f"{problems} problem{'s'[: problems > 1]} found.")


@app.command()
def rename(
    old: Annotated[str, typer.Argument(help="Name of an experiment in experiments/.")],
    new: Annotated[str, typer.Argument(help="Another name.")],
    config: WorkflowConfigOption = Path("config/config.yaml"),
) -> None:
    """Rename an experiment with all that it has made: nothing of it is made again but its report.

    Changes its `name` in the options file as well, where the workflow's config names that.
    """
    from omnitune.upkeep import rename_experiment

    rename_experiment(Project.load(read_yaml(config), str(config)), old, new)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of an experiment in experiments/.")],
    config: WorkflowConfigOption = Path("config/config.yaml"),
) -> None:
    """Remove an experiment with all that it has made: checkpoints, weights, images, scores, reports."""
    from omnitune.upkeep import remove_experiment

    remove_experiment(Project.load(read_yaml(config), str(config)), name)


@app.command()
def schema() -> None:
    """Write workflow/schemas/*.schema.json and config/README.md anew from the config models."""
    from omnitune.config.reference import write_reference

    write_reference(Path.cwd())


def _spread(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """Repeats an option before each of its values: the published `--input_image_path a b` is one option, two values."""
    result: list[str] = []
    current = None
    for word in arguments:
        if word.startswith("--"):
            current = word if word in names else None
            if current is None:
                result.append(word)
        elif current:
            result += [current, word]
        else:
            result.append(word)
    return result


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 1, without a traceback."""
    run: Callable[..., Any] = app
    with job():
        names = [f"--{name}" for name in ("input_image_path", "transformer_lora_path", "transformer_lora_scale")]
        run(_spread(sys.argv[1:], (*names, *(f"--{name[2:].replace('_', '-')}" for name in names))))


if __name__ == "__main__":
    main()
