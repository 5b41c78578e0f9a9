"""Fine-tune OmniGen2: validate, shard, encode, train, convert, evaluate, report."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


PARTS = "common phases inputs resources pretrained validate shard encode train convert evaluate report"

for part in PARTS.split():

    include: f"rules/{part}.smk"


BASES = all_outputs([*map(PROJECT.based, PROJECT.models), *targets.drawn(PROJECT)])
VALIDATED = [*BASES, *all_outputs(map(PROJECT.validated, PROJECT.sources))]
SHARDED = [*all_tars(), *all_outputs(map(PROJECT.indexed, PROJECT.sources))]
ENCODED = [*BASES, *SHARDED, *all_encodings()]
ADMITTED = all_outputs(map(PROJECT.admitted, PROJECT.experiments))
TRAINED = [
    *ENCODED,
    *ADMITTED,
    *all_outputs(map(PROJECT.trained, PROJECT.experiments)),
]
CONVERTED = [
    *TRAINED,
    *all_outputs(targets.converted(PROJECT)),
]
LISTED = all_outputs(map(PROJECT.listed, PROJECT.benchmarks))
EVALUATED = [
    *CONVERTED,
    *LISTED,
    *all_outputs(targets.scored(PROJECT, PROJECT.experiments)),
    *targets.exported(PROJECT, PROJECT.experiments),
]
REPORTED = [
    *expand(paths.REPORT, experiment=PROJECT.experiments),
    *expand(paths.COMPARISON, comparison=PROJECT.comparisons),
]


rule all:
    default_target: True
    input:
        *VALIDATED,
        *EVALUATED,
        *REPORTED,


rule validate:
    input:
        *VALIDATED,


rule shard:
    input:
        *SHARDED,


rule encode:
    input:
        *ENCODED,


rule train:
    input:
        *TRAINED,


rule convert:
    input:
        *CONVERTED,


rule evaluate:
    input:
        *EVALUATED,


rule report:
    input:
        *EVALUATED,
        *REPORTED,
