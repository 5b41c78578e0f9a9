"""The report of an experiment: one HTML file."""


def experiment_scores(wildcards):
    return scores_of(wildcards.experiment)


def validation_summary(wildcards):
    return f"prepared/{experiment_options(wildcards).data.dataset}/validation/summary.json"


def validation_rejected(wildcards):
    return f"prepared/{experiment_options(wildcards).data.dataset}/validation/rejected.jsonl"


def resolved_options(wildcards):
    return experiment_options(wildcards).model_dump(mode="json")


def all_benchmarks(wildcards):
    return {name: protocol.model_dump(mode="json") for name, protocol in PROJECT.benchmarks.items()}


def all_prompts(wildcards):
    return [protocol.prompts for protocol in PROJECT.benchmarks.values()]


rule build_report:
    input:
        train="experiments/{experiment}/train.json",
        summary=validation_summary,
        rejected=validation_rejected,
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
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    conda:
        "../envs/evaluate.yaml"
    params:
        options=resolved_options,
        benchmarks=all_benchmarks,
        format_version=1,
    script:
        "../scripts/build_report.py"
