"""`compare`: records in, one table, a page and pictures out.

Level: outside.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable
from pathlib import Path

from hf_compress.imports import is_available
from hf_compress.measurement.record import Record, load_records, sort_records
from hf_compress.report.parts_plots import plot_kept, plot_parts
from hf_compress.report.plots import first_quality_metric, plot_quality_latency, plot_quality_size, save_plot
from hf_compress.report.tables import compare_table
from hf_compress.report.training_plots import histories, plot_histories


def compare(records_or_folder: Iterable[Record] | str | Path, output_dir: str | Path | None = None) -> str:
    """Compare the models of one run.

    Args:
        records_or_folder: records, or the folder that holds them as *.json.
        output_dir: where comparison.md and comparison.html go and, if matplotlib is installed, pictures: quality
            against size and latency, the bytes of each model's parts, the training runs, what is left of each weight.

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
    pictures = _draw(records, folder) if is_available("matplotlib") else []
    parts = [
        "# Comparison",
        compare_table(records, style="markdown"),
        "\n".join(notes_of(records)),
        *(f"![{_title(p)}]({p.name})" for p in pictures),
    ]
    _replace(folder / "comparison.md", "\n\n".join(parts) + "\n")
    notes = "".join(f"<li>{html.escape(note.removeprefix('- '))}</li>" for note in notes_of(records))
    shown = "\n".join(f'<img alt="{_title(p)}" src="{_embedded(p)}">' for p in pictures)
    table = compare_table(records, style="html")
    _replace(folder / "comparison.html", _PAGE.format(table=table, notes=notes, pictures=shown))


def _replace(target: Path, text: str) -> None:
    part = target.with_name(target.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)


def _title(picture: Path) -> str:
    return picture.stem.replace("_", " ")


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _draw(records: list[Record], folder: Path) -> list[Path]:
    drawn = []
    if first_quality_metric(records):
        drawn.append(save_plot(plot_quality_size(records), folder / "quality_size.png"))
        if any(record.find("latency", batch_size=1) for record in records):
            drawn.append(save_plot(plot_quality_latency(records), folder / "quality_latency.png"))
    if any(record.method.get("parts") for record in records):
        drawn.append(save_plot(plot_parts(records), folder / "parts.png"))
    if histories(records):
        drawn.append(save_plot(plot_histories(records), folder / "training.png"))
    return drawn + _draw_kept(records, folder)


def _draw_kept(records: list[Record], folder: Path) -> list[Path]:
    """Draw the last model whose weights can be counted beside the first one."""
    counted = [r for r in records if dict(r.method.get("parts", {})).get("layers")]
    if len(counted) < 2 or not set(_names(counted[0])) & set(_names(counted[-1])):
        return []
    return [save_plot(plot_kept(counted[-1], counted[0]), folder / "kept.png")]


def _names(record: Record) -> list[str]:
    return list(record.method["parts"]["layers"])


# Pictures are on white, in a frame, so that they read on a dark page too.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #161616); }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid light-dark(#ddd, #444); text-align: right; }}
th:first-child {{ text-align: left; font-weight: normal; }}
tr:first-child th {{ font-weight: bold; }}
img {{ max-width: 100%; margin: 1rem 1rem 0 0; border-radius: 6px; background: #fff; }}
</style></head><body>
<h1>Comparison</h1>
<div>
{table}
</div>
<ul>{notes}</ul>
{pictures}
</body></html>
"""
