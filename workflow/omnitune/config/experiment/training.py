"""The sections `transport` and `train` of an experiment's options: the objective and the optimisation."""

import difflib
import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from omnitune.config.affects import NOTHING, Affects
from omnitune.config.base import PathText, PositiveInt, Section
from omnitune.config.choices import OPTIMIZERS, SCHEDULES, OneOf

WHOLE_TENSORS = ("adamw_8bit", "adafactor", "prodigy")  # optimizers over whole parameters, which FSDP cuts


class TransportOptions(Section):
    """The flow: how training times are drawn and weighted."""

    snr_type: Annotated[
        Literal["lognorm", "uniform", "stratified_uniform", "logit_normal"],
        Field(
            description="Distribution of times: `lognorm`, the sigmoid of a normal draw; `logit_normal`, the same with "
            "logit_mean and logit_std; `uniform`; `stratified_uniform`, one draw from each of equal parts of [0, 1], "
            "as many as the global batch has samples."
        ),
        Affects("weights"),
    ] = "lognorm"
    logit_mean: Annotated[
        float,
        Field(description="logit_normal: mean of the normal draw; above 0 is nearer to data."),
        Affects("weights"),
    ] = 0.0
    logit_std: Annotated[
        float, Field(gt=0, description="logit_normal: standard deviation of the normal draw."), Affects("weights")
    ] = 1.0
    do_shift: Annotated[bool, Field(description="Shift times towards noise for larger images."), Affects("weights")] = (
        True
    )
    dynamic_time_shift: Annotated[
        bool,
        Field(description="Shift by each sample's own number of image tokens instead of max_output_pixels."),
        Affects("weights"),
    ] = True
    time_shift_version: Annotated[
        Literal["v1", "v2"], Field(description="Formula of the shift."), Affects("weights")
    ] = "v1"
    loss_weighting: Annotated[
        Literal["none", "min_snr"],
        Field(
            description="Weight of a sample's squared error by its time: none, or min(SNR, min_snr_gamma) on the "
            "data's error."
        ),
        Affects("weights"),
    ] = "none"
    min_snr_gamma: Annotated[
        float,
        Field(gt=0, description="min_snr: the signal-to-noise ratio from which weights stay equal."),
        Affects("weights"),
    ] = 5.0


class ParameterGroup(Section):
    """Parameters that are trained, by name."""

    pattern: Annotated[
        str,
        Field(
            min_length=1,
            description="Shell pattern of parameter names, such as `layers.*.attn.*`; the first that fits counts.",
        ),
    ]
    learning_rate: Annotated[
        float | None, Field(gt=0, description="Their peak learning rate. null: train.learning_rate.")
    ] = None


def trained_names(names: Iterable[str], groups: Sequence[ParameterGroup] | None) -> dict[str, float | None]:
    """The parameters that are trained, in their order, each with the learning rate of its group.

    Args:
        names: of all parameters.
        groups: train.parameter_groups; of several patterns that fit a name the first counts. None: all are trained.

    Returns:
        learning rates by name; None is train.learning_rate.

    Raises:
        ValueError: for a pattern that fits none, or only what earlier patterns fit.
    """
    left = list(names)
    if groups is None:
        return dict.fromkeys(left)
    known = list(left)
    rates: dict[str, float | None] = {}
    for group in groups:
        found = [name for name in left if fnmatchcase(name, group.pattern)]
        if not found:
            earlier = any(fnmatchcase(name, group.pattern) for name in known)
            problem = "fits only parameters of the patterns before it" if earlier else "fits no parameter"
            near = difflib.get_close_matches(group.pattern, known, n=3, cutoff=0.4) or known[:3]
            raise ValueError(f"train.parameter_groups: {group.pattern!r} {problem}. Near: {', '.join(near)}.")
        rates |= dict.fromkeys(found, group.learning_rate)
        left = [name for name in left if name not in rates]
    return {name: rates[name] for name in known if name in rates}


class TrainOptions(Section):
    """The optimisation."""

    global_batch_size: Annotated[
        PositiveInt,
        Field(description="Samples per step: batch_size x processes x gradient_accumulation_steps."),
        Affects("weights"),
    ] = 16
    batch_size: Annotated[PositiveInt, Field(description="Samples per process and forward."), NOTHING] = 2
    gradient_accumulation_steps: Annotated[
        PositiveInt,
        Field(description="Forwards per step; processes exchange gradients after the last one only."),
        NOTHING,
    ] = 1
    max_train_steps: Annotated[
        PositiveInt, Field(description="Optimizer steps of the whole training."), Affects("checkpoints")
    ] = 4000
    num_train_epochs: Annotated[
        PositiveInt | None,
        Field(
            description="Where max_train_steps is not set: so many times as many samples as the sources have rows. The "
            "rows are counted whenever the options are read, so the .jsonl files must be there, on this machine."
        ),
        NOTHING,
    ] = None
    dataloader_num_workers: Annotated[
        int, Field(ge=0, description="Reader processes per training process. 0: read in the training process."), NOTHING
    ] = 6
    parallelism: Annotated[
        Literal["fsdp", "hsdp", "ddp", "auto"],
        Field(
            description="How several processes share the work. `fsdp`: parameters, gradients and optimizer are cut "
            "over all processes (FSDP2). `hsdp`: cut within a node, replicated across nodes. `ddp`: every process "
            "holds all of them; fastest where they fit, as with LoRA. `auto`: by estimated memory; the log says why."
        ),
        NOTHING,
    ] = "fsdp"
    hsdp_shard_size: Annotated[
        PositiveInt | None, Field(description="hsdp: processes that share one replica. null: those of a node."), NOTHING
    ] = None
    cpu_offload: Annotated[
        bool,
        Field(description="fsdp, hsdp: keep parameters, gradients and optimizer in CPU memory. Slow; needs a GPU."),
        NOTHING,
    ] = False
    reshard_after_forward: Annotated[
        bool,
        Field(
            description="FSDP: free gathered weights between forward and backward. false (ZeRO-2): more memory, less "
            "traffic."
        ),
        NOTHING,
    ] = True
    gradient_checkpointing: Annotated[
        bool,
        Field(description="Recompute blocks' activations in the backward pass: less memory, about a third more work."),
        NOTHING,
    ] = True
    gradient_checkpointing_every: Annotated[
        PositiveInt,
        Field(description="gradient_checkpointing: of every so many blocks one is recomputed. 1: each."),
        NOTHING,
    ] = 1
    mixed_precision: Annotated[
        Literal["bf16", "fp16", "fp32", "no"],
        Field(
            description="Precision of forward and backward; trained weights, optimizer and sums of gradients stay "
            "float32, matrices that are not trained are held in this precision. fp16 scales the loss. `fp32` is "
            "another name of `no`."
        ),
        Affects("weights"),
    ] = "bf16"
    allow_tf32: Annotated[
        bool, Field(description="Let CUDA matrix products of float32 use TF32."), Affects("weights")
    ] = False
    benchmark_cudnn: Annotated[
        bool, Field(description="Let cuDNN try its convolutions (the VAE's) and take the fastest."), NOTHING
    ] = False
    compile: Annotated[
        bool, Field(description="Compile each block with torch.compile; the first steps take minutes."), NOTHING
    ] = False
    attention: Annotated[
        Literal["auto", "cudnn", "varlen", "per_sample"],
        Field(
            description="Kernel of attention. `varlen`: flash attention over all sequences at once. `cudnn`: cuDNN, "
            "sequence by sequence, padded to multiples of 128 tokens. `per_sample`: torch's own choice, sequence by "
            "sequence, on any device. `auto`: the faster of the first two on a GPU that runs them, by a trial; the log "
            "says which."
        ),
        NOTHING,
    ] = "auto"
    fp8: Annotated[
        bool,
        Field(
            description="Matrix products of the blocks in float8 (torchao; GPUs from compute capability 8.9). Needs "
            "sizes that are multiples of 16, which the published hidden_size 2520 is not."
        ),
        Affects("weights"),
    ] = False
    optimizer: Annotated[
        str,
        OneOf(OPTIMIZERS),
        Field(
            description="`adamw_8bit` needs bitsandbytes and a GPU, and one process or ddp. `prodigy` finds its step "
            "size: set learning_rate: 1. `muon` trains the matrices of the blocks with Muon, all else with AdamW."
        ),
        Affects("weights"),
    ] = "adamw"
    use_8bit_adam: Annotated[
        bool, Field(description="The published name of `optimizer: adamw_8bit`."), Affects("weights")
    ] = False
    learning_rate: Annotated[float, Field(gt=0, description="Peak learning rate."), Affects("weights")] = 8e-7
    scale_lr: Annotated[
        bool, Field(description="Multiply the learning rate by global_batch_size."), Affects("weights")
    ] = False
    lr_scheduler: Annotated[
        str,
        OneOf(SCHEDULES),
        Field(
            description="Schedule: the published `timm_` ones (keys warmup_*, t_*, lr_min) or diffusers' (keys lr_*)."
        ),
        Affects("weights"),
    ] = "timm_constant_with_warmup"
    warmup_t: Annotated[int, Field(ge=0, description="timm: steps of linear warm-up."), Affects("weights")] = 500
    warmup_lr_init: Annotated[
        float, Field(ge=0, description="timm: learning rate at the first step of the warm-up."), Affects("weights")
    ] = 1e-18
    warmup_prefix: Annotated[
        bool, Field(description="timm: the schedule starts after the warm-up."), Affects("weights")
    ] = True
    t_in_epochs: Annotated[
        bool,
        Field(description="Read for compatibility: times count steps, as they do in the published trainer."),
        NOTHING,
    ] = False
    t_initial: Annotated[
        PositiveInt | None,
        Field(description="timm_cosine: length of the cosine. null: up to the end."),
        Affects("weights"),
    ] = None
    lr_min: Annotated[float, Field(ge=0, description="timm_cosine: lowest learning rate."), Affects("weights")] = 0.0
    cycle_decay: Annotated[
        float,
        Field(gt=0, le=1, description="Read for compatibility: there is one cycle, and nothing decays after it."),
        NOTHING,
    ] = 1.0
    lr_warmup_steps: Annotated[
        int, Field(ge=0, description="diffusers: steps of linear warm-up."), Affects("weights")
    ] = 0
    lr_num_cycles: Annotated[
        int, Field(ge=1, description="diffusers: cycles of cosine_with_restarts."), Affects("weights")
    ] = 1
    lr_power: Annotated[float, Field(gt=0, description="diffusers: power of polynomial."), Affects("weights")] = 1.0
    lr_step_rules: Annotated[
        str | None,
        Field(
            description="piecewise_constant: factors and the steps they end before, then the last factor: "
            '"1:100,0.1:200,0.01".'
        ),
        Affects("weights"),
    ] = None
    adam_beta1: Annotated[
        float, Field(ge=0, lt=1, description="AdamW, Prodigy: decay of the first moment."), Affects("weights")
    ] = 0.9
    adam_beta2: Annotated[
        float, Field(ge=0, lt=1, description="AdamW, Prodigy: decay of the second moment."), Affects("weights")
    ] = 0.95
    adam_weight_decay: Annotated[
        float, Field(ge=0, description="All optimizers: weight decay."), Affects("weights")
    ] = 0.01
    adam_epsilon: Annotated[float, Field(gt=0, description="AdamW, Prodigy: epsilon."), Affects("weights")] = 1e-8
    muon_momentum: Annotated[float, Field(ge=0, lt=1, description="Muon: momentum."), Affects("weights")] = 0.95
    max_grad_norm: Annotated[
        float, Field(gt=0, description="Gradients are clipped to this global norm."), Affects("weights")
    ] = 1.0
    max_nonfinite_steps: Annotated[
        int,
        Field(
            ge=0,
            description="Steps whose loss or gradient is not finite are skipped; after more than so many in a row it "
            "stops.",
        ),
        NOTHING,
    ] = 5
    max_restarts: Annotated[
        int,
        Field(
            ge=0, description="How often a training whose processes died goes on by itself from its newest checkpoint."
        ),
        NOTHING,
    ] = 0
    async_checkpoint: Annotated[
        bool,
        Field(description="Write checkpoints in the background, from a copy in CPU memory, while training goes on."),
        NOTHING,
    ] = False
    set_grads_to_none: Annotated[
        bool, Field(description="Read for compatibility: gradients are always set to none."), NOTHING
    ] = True
    ema_decay: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Decay of an average of the trained weights, converted and evaluated beside them. 0: none.",
        ),
        Affects("weights"),
    ] = 0.0
    parameter_groups: Annotated[
        list[ParameterGroup] | None,
        Field(
            min_length=1, description="Train only the parameters that these patterns name. null: all; not with lora_ft."
        ),
        Affects("weights"),
    ] = None
    lora_ft: Annotated[
        bool, Field(description="Train LoRA adapters instead of all parameters."), Affects("weights")
    ] = False
    lora_rank: Annotated[PositiveInt, Field(description="LoRA rank."), Affects("weights")] = 8
    lora_alpha: Annotated[PositiveInt | None, Field(description="LoRA alpha. null: the rank."), Affects("weights")] = (
        None
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1, description="LoRA dropout."), Affects("weights")] = 0.0
    lora_target_modules: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            description="Linear layers that get an adapter: ends of their names (`to_q`, `feed_forward.linear_1`) or "
            "shell patterns of whole names (`layers.*.attn.*`). null: to_q, to_k, to_v, to_out.0.",
        ),
        Affects("weights"),
    ] = None
    lora_use_dora: Annotated[
        bool, Field(description="DoRA: train the magnitude of each adapted weight's rows as well."), Affects("weights")
    ] = False
    lora_use_rslora: Annotated[
        bool, Field(description="rsLoRA: scale by alpha / sqrt(rank) instead of alpha / rank."), Affects("weights")
    ] = False
    lora_path: Annotated[
        PathText | None,
        Field(
            description="Start from this adapter (pytorch_lora_weights.safetensors or its folder), of equal rank and "
            "targets."
        ),
        Affects("weights"),
    ] = None
    resume_from_checkpoint: Annotated[
        str | None, Field(description="Read for compatibility at this place; use the top-level key."), NOTHING
    ] = None

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_words(cls, value: object) -> object:
        if value is False:  # in YAML, `no` without quotes
            return "no"
        if value is True or str(value).lower() in {"yes", "on", "true", "off", "false"}:
            raise ValueError("name a precision: bf16, fp16 or fp32 (`no` is another name of fp32)")
        return value

    @field_validator("mixed_precision")
    @classmethod
    def _one_name_for_full_precision(cls, value: str) -> str:
        return "no" if value == "fp32" else value

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        per_process = self.batch_size * self.gradient_accumulation_steps
        if self.global_batch_size % per_process:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is no multiple of batch_size {self.batch_size} x "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} = {per_process}"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> Self:
        if self.use_8bit_adam and self.optimizer not in {"adamw", "adamw_8bit"}:
            raise ValueError(f"use_8bit_adam: true contradicts optimizer: {self.optimizer!r}; keep one of the two")
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError("lr_step_rules: belongs to lr_scheduler: 'piecewise_constant'; set both or neither")
        if self.lr_step_rules is not None:
            _check_step_rules(self.lr_step_rules)
        if self.lora_ft and self.parameter_groups:
            raise ValueError("parameter_groups: is for training without LoRA; choose adapters with lora_target_modules")
        if self.hsdp_shard_size and self.parallelism not in {"hsdp", "auto"}:
            raise ValueError(f"hsdp_shard_size: is for parallelism: 'hsdp', not {self.parallelism!r}")
        if self.optimizer_name in WHOLE_TENSORS and self.parallelism in {"fsdp", "hsdp"} and self.num_processes > 1:
            raise ValueError(
                f"optimizer: {self.optimizer_name!r} is not allowed with parallelism: {self.parallelism!r} over "
                "several processes: it computes over whole parameters, which are cut there; take 'adamw' or 'muon', or "
                "parallelism: 'ddp'"
            )
        if self.attention in {"cudnn", "varlen"} and self.mixed_precision == "no":
            raise ValueError(
                f"attention: {self.attention!r} computes in bf16 or fp16; set mixed_precision to one of these, or take "
                "'auto'"
            )
        lora = [key for key in ("lora_target_modules", "lora_path") if getattr(self, key)]
        if lora and not self.lora_ft:
            raise ValueError(f"{lora[0]}: needs lora_ft: true")
        return self

    @property
    def num_processes(self) -> int:
        """How many training processes the batch sizes ask for, over all nodes."""
        return self.global_batch_size // (self.batch_size * self.gradient_accumulation_steps)

    @property
    def schedule_stretches(self) -> bool:
        """Whether another max_train_steps would change the learning rates of steps that are done."""
        fixed = self.lr_scheduler == "timm_cosine" and self.t_initial is not None
        return SCHEDULES[self.lr_scheduler].stretches and not fixed

    @property
    def optimizer_name(self) -> str:
        """The optimizer, whichever of its two keys names it."""
        return "adamw_8bit" if self.use_8bit_adam else self.optimizer


def _check_step_rules(rules: str) -> None:
    """Raises ValueError unless rules read as diffusers' piecewise_constant reads them."""
    *steps, last = rules.split(",")
    try:
        pairs = [(float(factor), int(step)) for factor, step in (rule.split(":") for rule in steps)]
        factors = [*(factor for factor, _ in pairs), float(last)]
    except ValueError:
        raise ValueError(
            f'lr_step_rules: {rules!r} does not read as "factor:step,..,factor", such as "1:100,0.1"'
        ) from None
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
        raise ValueError(f"lr_step_rules: the factors of {rules!r} must be finite and not negative")
    if [step for _, step in pairs] != sorted({step for _, step in pairs}):
        raise ValueError(f"lr_step_rules: the steps of {rules!r} must rise")
