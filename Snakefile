"""Fine-tune OmniGen2: validate, shard, encode, train, convert, evaluate, report."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


PARTS = "common pretrained validate shard encode train convert evaluate report"

for part in PARTS.split():

    include: f"rules/{part}.smk"


rule all:
    default_target: True
    input:
        all_tars,
        all_conversions(),
        all_reports(),


rule validate:
    input:
        all_summaries(),


rule shard:
    input:
        all_tars,
        all_indexes(),


rule encode:
    input:
        all_encodings,


rule train:
    input:
        all_tars,
        all_trainings(),


rule convert:
    input:
        all_conversions(),


rule evaluate:
    input:
        all_scores(),


rule report:
    input:
        all_reports(),
