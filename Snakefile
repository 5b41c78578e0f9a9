"""Fine-tune OmniGen2: validate, shard, train, convert, evaluate, report."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/pretrained.smk"
include: "rules/validate.smk"
include: "rules/shard.smk"
include: "rules/train.smk"
include: "rules/convert.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


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
