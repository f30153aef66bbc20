"""`compare`: records in, one table and two pictures out.

Level: outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hf_compress.imports import is_available
from hf_compress.measurement.record import Record, load_records, sort_records
from hf_compress.report.plots import first_quality_metric, plot_quality_latency, plot_quality_size, save_plot
from hf_compress.report.tables import compare_table


def compare(records_or_folder: Iterable[Record] | str | Path, output_dir: str | Path | None = None) -> str:
    """Compare the models of one run.

    Args:
        records_or_folder: records, or the folder that holds them as *.json.
        output_dir: where comparison.md and, if quality was measured and matplotlib is installed, quality_size.png and
            quality_latency.png go.

    Returns:
        The table as plain text, with the notes of the records below it.

    Raises:
        RecordError: if there are no records, more than one baseline, or quality on different data.
    """
    if isinstance(records_or_folder, (str, Path)):
        # Files come in order of their names; `measure` notes which model came after which.
        records = sort_records(sorted(load_records(records_or_folder), key=lambda r: r.method.get("step", 0)))
    else:
        records = sort_records(records_or_folder)
    text = "\n".join([compare_table(records), *notes_of(records)])
    if output_dir is not None:
        _write(records, Path(output_dir))
    return text


def notes_of(records: Iterable[Record]) -> list[str]:
    """Return what must be known beside the numbers, one line each."""
    return [f"- {record.model}: {note}" for record in records for note in record.notes]


def _write(records: list[Record], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # matplotlib is optional; the table does not need it.
    can_draw = is_available("matplotlib") and first_quality_metric(records)
    pictures = _draw(records, folder) if can_draw else []
    parts = [
        "# Comparison",
        compare_table(records, style="markdown"),
        "\n".join(notes_of(records)),
        *(f"![{p.stem.replace('_', ' ')}]({p.name})" for p in pictures),
    ]
    target = folder / "comparison.md"
    part = target.with_name(target.name + ".part")
    part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(part, target)


def _draw(records: list[Record], folder: Path) -> list[Path]:
    pictures = [save_plot(plot_quality_size(records), folder / "quality_size.png")]
    if any(record.find("latency", batch_size=1) for record in records):
        pictures.append(save_plot(plot_quality_latency(records), folder / "quality_latency.png"))
    return pictures
