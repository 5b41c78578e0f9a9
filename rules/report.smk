"""The report of an experiment: one HTML file."""


rule build_report:
    input:
        train="experiments/{experiment}/train.json",
        summary=validation_summary,
        rejected=validation_rejected,
        index=experiment_index,
        encoded=experiment_encodings,
        conversions=experiment_conversions,
        scores=experiment_scores,
        prompts=all_prompts,
    output:
        html=report(
            "experiments/{experiment}/report/index.html",
            caption="../workflow/report/experiment.rst",
            category="Experiments",
            labels={"experiment": "{experiment}"},
        ),
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
        options=resolved_options,
        benchmarks=all_benchmarks,
        evaluations=experiment_evaluations,
        format_version=3,
    script:
        "../scripts/build_report.py"
