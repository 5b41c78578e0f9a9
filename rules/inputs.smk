"""Input functions of the rules, by stage: what each of them takes, and which phases it stands behind."""


def get_data(wildcards):
    return PROJECT.dataset(wildcards.dataset)


def get_options(wildcards):
    return PROJECT.experiment(wildcards.experiment)


def get_benchmark(wildcards):
    return PROJECT.benchmarks[wildcards.benchmark]


def named(find, *names):
    """What a function of the package finds; ends the run for a name that may not reach a job, and for what is wrong."""
    try:
        return find(*names)
    except ValueError as error:
        refuse(str(error))


# ------------------------------------------------------------------ pretrained


def get_local_base(wildcards):
    """The files of a local pipeline folder are inputs; a repository id or `demo` is not a file."""
    return named(PROJECT.base_files, wildcards.model)


def get_base_source(wildcards):
    return PROJECT.base_source(wildcards.model)


# ------------------------------------------------------------------ validate


def get_local_samples(wildcards):
    """The .jsonl files of a source that are no URLs."""
    files = PROJECT.sources[wildcards.dataset][wildcards.source].files
    behind(PROJECT.drawn(files))
    files = named(PROJECT.sample_files, wildcards.dataset, wildcards.source)
    refuse_missing(wildcards, files)
    return files


def refuse_missing(wildcards, files):
    """Ends the run for samples that are not there and that no rule makes, be it one of another workflow."""
    source = PROJECT.sources[wildcards.dataset][wildcards.source]
    for file in files:
        if not os.path.exists(file) and not any(
            maker.is_producer(file) for maker in workflow.rules
        ):
            refuse(source.missing(file))


def get_source_files(wildcards):
    files = PROJECT.sources[wildcards.dataset][wildcards.source].files
    return [str(path) for path in files]


def get_url_versions(wildcards):
    """In place of the time of change that Snakemake sees of a local file."""
    files = filter(is_url, get_source_files(wildcards))
    limits, roots = get_data(wildcards).urls.limits, get_source_roots(wildcards)
    with fetching(limits, roots, "samples"):
        return {path: named(version_of, path) for path in files}


# Of a parameter whose function asks for `threads`, Snakemake keeps no record, so that another value is no reason to
# run: where something may be read from, and how much, changes nothing of what was read.


def get_source_roots(wildcards, threads=None):
    return get_data(wildcards).source_roots or []


def get_tokenizer(wildcards):
    """Manifest of the base model whose tokenizer counts."""
    [base] = behind(PROJECT.based(PROJECT.tokenizer_model(wildcards.dataset)))
    return base.manifest


def get_validated_sources(wildcards):
    behind(PROJECT.validated(wildcards.dataset)[:-1])
    return expand(
        f"{paths.VALIDATED_SOURCE}/{paths.SAMPLES}",
        dataset=wildcards.dataset,
        source=PROJECT.sources[wildcards.dataset],
    )


# ------------------------------------------------------------------ shard


def get_manifest_digest(wildcards):
    """In place of the manifest, which is written anew with the same content and may be too large to compare."""
    behind(PROJECT.validated(wildcards.dataset))
    return paths.MANIFEST_DIGEST.format(**wildcards)


def get_tar_outputs():
    """A tar at a URL is no file that Snakemake could see; its own index stands for it."""
    tar = {} if PROJECT.shards_url else {"tar": paths.TAR}
    return {**tar, "index": paths.SHARD_INDEX}


def get_tar_folder(wildcards):
    folder = paths.SHARDS.format(dataset=wildcards.dataset)
    if PROJECT.shards_url:
        folder = f"{PROJECT.shards_url.rstrip('/')}/{wildcards.dataset}"
    return key_line("tars", folder)


def get_image_urls(wildcards, threads):
    """What holds for images at URLs; unrecorded, as get_source_roots."""
    data = get_data(wildcards)
    return {**data.urls.model_dump(), "image_root": data.image_root}


def get_shards(dataset):
    """Tar and index of each shard that validation has found accepted samples for; indexes alone of tars at a URL."""
    reading(PROJECT.validated(dataset))
    shards = [name for group in PROJECT.groups(dataset).values() for name in group]
    folder = paths.SHARDS.format(dataset=dataset)
    kinds = ("parquet",) if PROJECT.shards_url else ("tar", "parquet")
    return [[f"{folder}/{name}.{kind}" for kind in kinds] for name in shards]


def get_shard_indexes(wildcards):
    return [shard[-1] for shard in get_shards(wildcards.dataset)]


# ------------------------------------------------------------------ encode


def get_group_digests(wildcards):
    """Of the tars of a group: an encoding is that of their content, whenever they were written."""
    reading(PROJECT.indexed(wildcards.dataset))
    group = wildcards.source, int(wildcards.group)
    folder = paths.SHARD_DIGESTS.format(dataset=wildcards.dataset)
    return [
        f"{folder}/{shard}.sha256"
        for shard in PROJECT.groups(wildcards.dataset).get(group, [])
    ]


def get_encoding_base(wildcards):
    [base] = behind(PROJECT.based(wildcards.model))
    return base.manifest


def get_encoded_groups(dataset, model):
    reading(PROJECT.indexed(dataset))
    return PROJECT.encodings(dataset, model)


# ------------------------------------------------------------------ train


def get_index(wildcards):
    look_ahead([PROJECT.admitted(wildcards.experiment)])
    dataset = get_options(wildcards).data.dataset
    [indexed] = behind(PROJECT.indexed(dataset))
    return indexed.index


def get_encodings(wildcards):
    """The encoded groups; nothing where training encodes by itself."""
    behind(PROJECT.admitted(wildcards.experiment)[:-1])
    data = get_options(wildcards).data
    model = PROJECT.starts[wildcards.experiment].model
    return get_encoded_groups(data.dataset, model) if data.encode else []


def get_base(wildcards):
    """Manifest of the base model."""
    [base] = behind(PROJECT.based(PROJECT.starts[wildcards.experiment].model))
    return base.manifest


def get_starting_weights(wildcards):
    """The conversion of another experiment that training starts from, or files; nothing for the base model."""
    behind(PROJECT.started(wildcards.experiment))
    return named(PROJECT.starting_files, wildcards.experiment)


def get_starting_adapter(wildcards):
    behind(PROJECT.started(wildcards.experiment))
    return named(PROJECT.starting_adapter, wildcards.experiment) or []


def get_ratios(wildcards):
    dataset = get_options(wildcards).data.dataset
    sources = PROJECT.sources[dataset].values()
    return key_line("mixture", {source.name: source.ratio for source in sources})


def get_identity(wildcards):
    [prepared] = behind(PROJECT.admitted(wildcards.experiment))
    return prepared.identity


# ------------------------------------------------------------------ convert


def get_checkpoint(wildcards):
    """What a checkpoint says of itself. Where that is lost and not converted yet, the job says what to do."""
    step = EvaluatedStep(int(wildcards.step), wildcards.weights.endswith("_ema"))
    named(get_options(wildcards).require_step, step, wildcards.weights)
    [trained] = behind(PROJECT.trained(wildcards.experiment))
    state = f"{paths.CHECKPOINT}/{paths.STATE_FILE}".format(**wildcards)
    conversion = paths.CONVERSION.format(**wildcards)
    if os.path.exists(state):
        return state
    if is_forced("convert_checkpoint", conversion):
        refuse(
            f"{state} is missing, so that this checkpoint cannot be converted again. To train up to it again: "
            f"rm {trained.manifest}; snakemake --cores 2 train. Without forcing it, {conversion} stays as it is."
        )
    return state if os.path.exists(conversion) else trained.manifest


def get_other_parts(wildcards):
    """Manifest of the base model, whose other parts go into a whole pipeline folder."""
    return get_base(wildcards) if wildcards.weights.endswith("_pipeline") else []


# ------------------------------------------------------------------ evaluate


def get_foreign(wildcards):
    return PROJECT.foreign[wildcards.benchmark]


def get_prompt_sources(wildcards):
    """The files of prompts in another format than ours."""
    return named(PROJECT.prompt_sources, wildcards.benchmark)


def read_benchmark(wildcards):
    reading(*filter(None, [PROJECT.listed(wildcards.benchmark)[:-1]]))
    return named(PROJECT.prompts, wildcards.benchmark)


def get_prompt_images(wildcards):
    """The images that prompts name, their inputs and targets."""
    return [str(path) for path in prompt_images(read_benchmark(wildcards))]


def get_measuring_models(wildcards):
    """Files of the models that measures need, where these are folders."""
    return named(PROJECT.measuring_models, wildcards.benchmark)


def get_prompts(wildcards):
    """What the lines of the prompts were read as."""
    return key_line("prompts", prompts_hash(read_benchmark(wildcards)))


def get_weights(wildcards):
    """Manifest of the weights to evaluate, or files; those of the base are what the experiment started from."""
    step = EvaluatedStep.parse(wildcards.step)
    if not step.baseline:
        named(get_options(wildcards).require_step, step)
    if int(wildcards.part) >= get_benchmark(wildcards).parts:
        refuse(
            f"benchmark {wildcards.benchmark!r} has {get_benchmark(wildcards).parts} parts, from 0."
        )
    behind(PROJECT.loadable(wildcards.experiment, step))
    if step.baseline:
        return named(PROJECT.baseline_files, wildcards.benchmark, step.baseline)
    if step.number:
        return PROJECT.conversion(wildcards.experiment, step)
    return named(PROJECT.starting_files, wildcards.experiment)


def get_starting_transformer(wildcards):
    return str(PROJECT.starts[wildcards.experiment].transformer)


def get_transformer(wildcards):
    """Of a baseline what is drawn with it; of other steps what the experiment started from."""
    step = EvaluatedStep.parse(wildcards.step)
    keys = wildcards.experiment, step, wildcards.benchmark
    return str(named(PROJECT.loaded, *keys)[0])


def get_protocol(wildcards):
    [benchmark] = behind(PROJECT.listed(wildcards.benchmark))
    return benchmark.protocol


def get_scoring(wildcards):
    [benchmark] = behind(PROJECT.listed(wildcards.benchmark))
    return benchmark.scoring


def get_parts(wildcards):
    step = EvaluatedStep.parse(wildcards.step)
    behind(PROJECT.scored(wildcards.experiment, step, wildcards.benchmark)[:-1])
    parts = range(get_benchmark(wildcards).parts)
    return expand(paths.PART, part=parts, **wildcards)


def get_judge(wildcards):
    """What a judge's answers depend on."""
    return key_line("judges", get_benchmark(wildcards).judge(wildcards.judge).asked)


def get_judgements(wildcards):
    get_parts(wildcards)
    judges = [judge.name for judge in get_benchmark(wildcards).judges]
    return expand(paths.JUDGEMENTS, judge=judges, **wildcards)


def get_labels(wildcards):
    """Files of people's scores, with which judges' are compared."""
    return named(PROJECT.labels, wildcards.benchmark)


def get_generations(wildcards):
    step = EvaluatedStep.parse(wildcards.step)
    [scored] = behind(PROJECT.scored(wildcards.experiment, step, wildcards.benchmark))
    return scored.generations


# ------------------------------------------------------------------ report


def get_training(wildcards):
    [trained] = behind(PROJECT.trained(wildcards.experiment))
    return trained.manifest


def get_validation(wildcards):
    """Summary and ledger."""
    [validation] = behind(PROJECT.validated(get_options(wildcards).data.dataset))
    return [validation.summary, validation.rejected]


def get_conversions(wildcards):
    evaluated = get_options(wildcards).evaluated
    conversions = [PROJECT.converted(wildcards.experiment, step) for step in evaluated]
    return [output.manifest for output in behind(*conversions)]


def get_scores(wildcards):
    """Scores and generations of each evaluation."""
    outputs = behind(*targets.scored(PROJECT, [wildcards.experiment]))
    return [path for output in outputs for path in output]


def get_protocols(wildcards):
    listed = [PROJECT.listed(name) for name in PROJECT.benchmarks]
    return [path for output in behind(*listed) for path in output]


def get_evaluation_folders(wildcards):
    """Folder of each evaluated step."""
    folders = PROJECT.evaluated_folders(wildcards.experiment)
    return {str(step): folder for step, folder in folders.items()}


def get_primary_measures(wildcards):
    """What the verdict on each benchmark is about, as keys with their values."""
    return [
        key_line(f"{name}: {key}", value)
        for name, benchmark in PROJECT.benchmarks.items()
        for key, value in keys_affecting(benchmark, "reports").items()
    ]


def get_votes(wildcards):
    """Files of people's votes, where there are any."""
    files = [paths.VOTES.format(benchmark=name) for name in PROJECT.benchmarks]
    return [path for path in files if os.path.exists(path)]


def get_compared_trainings(wildcards):
    trained = behind(*map(PROJECT.trained, PROJECT.comparisons[wildcards.comparison]))
    return [output.manifest for output in trained]


def get_compared_scores(wildcards):
    """Scores and generations of all experiments, and once those of the bases that they share."""
    compared = PROJECT.comparisons[wildcards.comparison]
    outputs = behind(*targets.scored(PROJECT, compared))
    return [path for output in outputs for path in output]


# ------------------------------------------------------------------ targets


def all_outputs(chains):
    """What the last phase of each chain leaves, as targets that are waited for side by side."""
    return [lambda wildcards, chain=chain: list(behind(chain)[0]) for chain in chains]


def all_tars():
    """Targets of their own: Snakemake does not miss the lost input of a job that need not run."""
    return [
        lambda wildcards, dataset=dataset: [
            path for shard in get_shards(dataset) for path in shard
        ]
        for dataset in PROJECT.sources
    ]


def all_encodings():
    return [
        lambda wildcards, pair=pair: get_encoded_groups(*pair)
        for pair in targets.encoded(PROJECT)
    ]
