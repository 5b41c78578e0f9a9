"""The report of an experiment, and comparisons of experiments: an HTML file each."""

import time

import omnitune.report

STARTED = time.time()


onsuccess:
    for path in expand(paths.REPORT, experiment=PROJECT.experiments):
        if os.path.exists(path) and os.path.getmtime(path) >= STARTED:
            logger.info(f"Report: {os.path.abspath(path)}")


rule build_report:
    input:
        train=get_training,
        validation=get_validation,
        conversions=get_conversions,
        protocols=get_protocols,
        scores=get_scores,
        votes=get_votes,
    output:
        html=report(
            paths.REPORT,
            caption="../workflow/report/experiment.rst",
            category="Experiments",
            labels={"experiment": "{experiment}"},
        ),
        tables=paths.REPORT_TABLES,
    log:
        "logs/build_report/{experiment}.log",
    benchmark:
        "logs/benchmarks/build_report/{experiment}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        primary=get_primary_measures,
        evaluations=get_evaluation_folders,
        format=f"format: {omnitune.report.FORMAT}",
    script:
        "../scripts/build_report.py"


rule compare_experiments:
    input:
        trainings=get_compared_trainings,
        protocols=get_protocols,
        scores=get_compared_scores,
    output:
        html=report(
            paths.COMPARISON,
            caption="../workflow/report/comparison.rst",
            category="Comparisons",
            labels={"comparison": "{comparison}"},
        ),
        table=paths.COMPARISON_TABLE,
    log:
        "logs/compare_experiments/{comparison}.log",
    benchmark:
        "logs/benchmarks/compare_experiments/{comparison}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        primary=get_primary_measures,
        compared=lambda wildcards: PROJECT.comparisons[wildcards.comparison],
        format=f"format: {omnitune.report.FORMAT}",
    script:
        "../scripts/compare_experiments.py"
