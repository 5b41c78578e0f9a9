"""What the report says of the data: validation, shards, encoded samples, and what training has drawn from them."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnitune.config.choices import IMAGE_FORMATS
from omnitune.encoding.fingerprint import stored_fingerprint
from omnitune.encoding.groups import GROUPS
from omnitune.validation.summary import TITLES, whole_of

SHOWN_LABELS = 20  # of a histogram without an order of its own; the rest is counted in one more
TOKEN_COLUMNS = ("output_tokens", "input_tokens", "text_tokens")


def short(value: float, unit: str = "") -> str:
    """A number with three digits or so and a decimal prefix, for example "12.3 M" or "4.56 GB"."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def data_context(
    summary: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    encoded: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What the template shows of the data: from the summary, `read_shards`, `read_encoded` and options.data."""
    return {
        "facts": _facts(summary) if summary else [],
        "sources": _sources(summary),
        "histograms": [
            {"title": title, "rows": histogram(summary[name], whole_of(name, summary))}
            for name, title in TITLES.items()
            if any(summary.get(name, {}).values())
        ],
        "shards": shards,
        "encoded": encoded,
        "format": _format(options),
    }


def _format(options: Mapping[str, Any]) -> str:
    """A sentence on the images in shards."""
    kind, quality = options["image_format"], options["image_quality"]
    quality = f", quality {quality}" if IMAGE_FORMATS[kind].has_quality else ""
    return (
        f"Images that had to be changed are kept as {kind}{quality}, others as they came. Outputs have at most "
        f"{thousands(options['max_output_pixels'])} pixels, and no side more than {options['max_side_length']}."
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Totals of the validation; those that a summary lacks are left out, those that were not counted say so."""
    rows, rejected = summary.get("rows", 0), summary.get("rejected", 0)
    facts = [("Rejected", f"{thousands(rejected)} ({100 * rejected / (rows or 1):.2f} %)")]
    names = {"rows": "Rows", "accepted": "Accepted", "blank_lines": "Blank lines", "images": "Images"}
    facts = [(label, thousands(summary[name])) for name, label in names.items() if name in summary] + facts
    for name, label, unit in (("image_pixels", "Pixels", ""), ("image_bytes", "Bytes of images", "B")):
        if name in summary:
            facts.append((label, short(summary[name], unit)))
    for name, label in (("text_tokens", "Text tokens"), ("duplicate_output_images", "Repeated output images")):
        if name in summary:
            facts.append((label, "not counted" if summary[name] is None else thousands(summary[name])))
    if "depth" in summary:
        facts.append(("Depth of validation", str(summary["depth"])))
    return facts


def thousands(value: int) -> str:
    """A whole number in groups of three digits."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _sources(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accepted and rejected rows of each source, with the reasons."""
    return [
        {
            "name": name,
            "rows": counts["rows"],
            "accepted": counts["accepted"],
            "rejected": counts["rejected"],
            "reasons": ", ".join(f"{reason} {thousands(count)}" for reason, count in counts["reasons"].items()),
        }
        for name, counts in summary.get("sources", {}).items()
    ]


def histogram(counts: Mapping[str, int], whole: int) -> list[dict[str, Any]]:
    """Label, count, share of the whole and width of the bar in percent, without the empty classes at both ends."""
    labels = list(counts)
    filled = [k for k, label in enumerate(labels) if counts[label]]
    shown = {label: counts[label] for label in labels[filled[0] : filled[-1] + 1]}
    rows = dict(islice(shown.items(), SHOWN_LABELS))
    if len(shown) > SHOWN_LABELS:
        rows[f"{len(shown) - SHOWN_LABELS} more"] = sum(islice(shown.values(), SHOWN_LABELS, None))
    top = max(rows.values())
    return [
        {"label": label, "count": count, "share": 100 * count / whole, "width": 100 * count / top}
        for label, count in rows.items()
    ]


def read_shards(index: Path) -> list[dict[str, Any]]:
    """Per source of a shards' index: name, tars, samples, bytes of tars, tokens of one pass; [] without an index."""
    if not index.is_file():
        return []
    sources: dict[str, dict[str, Any]] = {}
    with pq.ParquetFile(index) as file:
        columns = [name for name in ("source", "tar", "tar_bytes", *TOKEN_COLUMNS) if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            _add_shards(sources, pa.table(batch))
    return [
        {**figures, "name": name, "tars": len(figures["tars"]), "bytes": sum(figures["tars"].values())}
        for name, figures in sorted(sources.items())
    ]


def _add_shards(sources: dict[str, dict[str, Any]], rows: pa.Table) -> None:
    known = [rows[name].cast(pa.int64()).fill_null(0) for name in TOKEN_COLUMNS if name in rows.column_names]
    rows = rows.append_column("tokens", reduce(pc.add, known))
    groups = rows.group_by(["source", "tar", "tar_bytes"]).aggregate([("tokens", "sum"), ("tokens", "count")])
    for group in groups.to_pylist():
        figures = sources.setdefault(group["source"], {"tars": {}, "samples": 0, "tokens": 0})
        figures["tars"][group["tar"]] = group["tar_bytes"]
        figures["samples"] += group["tokens_count"]
        figures["tokens"] += group["tokens_sum"]


def read_encoded(folder: Path) -> list[dict[str, Any]]:
    """Per encoding of a data set: name of the base model, samples, bytes, bytes per sample and precision."""
    found = []
    for model in sorted(path for path in folder.glob("*") if path.is_dir()):
        sizes, precisions = [], set()
        for group in sorted((model / GROUPS).glob("*.parquet")):
            sizes.append(pq.read_table(group, columns=["size"])["size"].to_numpy())
            precisions.add((stored_fingerprint(group) or {}).get("encoded_precision", "not known"))
        if sizes:
            samples, total = sum(map(len, sizes)), int(sum(size.sum() for size in sizes))
            figures = {"samples": samples, "bytes": total, "per_sample": total / max(samples, 1)}
            found.append({"name": model.name, **figures, "precision": ", ".join(sorted(precisions))})
    return found
