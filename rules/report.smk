"""The report of an experiment: one HTML file."""

import omnitune.report


rule build_report:
    input:
        train=get_training,
        validation=get_validation,
        conversions=get_conversions,
        protocols=get_protocols,
        scores=get_scores,
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
        evaluations=get_evaluation_folders,
        format=f"format: {omnitune.report.FORMAT}",
    script:
        "../scripts/build_report.py"
