"""Model cards: every number comes from a record of the same run, or is absent.

Level: base; jinja2, yaml and huggingface_hub are imported inside functions.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError, OutputExistsError, RecordError
from hf_compress.hub.config import CardInfo, is_hub_id
from hf_compress.measurement.record import Record, sort_records
from hf_compress.report import tables, wording

# What an exported model needs besides torch and transformers.
_RUNTIMES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "executorch": ("executorch",)}
# End of an architecture's name -> the Auto class that loads it and the Hub's name of the task.
_AUTO_CLASSES = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", "multiple-choice"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "GPT2LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForAudioClassification": ("AutoModelForAudioClassification", "audio-classification"),
}
# Audio models whose class name says "sequence", and models of several kinds: other Auto classes than the ending says.
_EXCEPTIONS = re.compile(
    r"Data2VecAudio|Hubert|SEW|UniSpeech|Wav2Vec2|WavLM|LayoutLM|Tapas|Blip|Vilt|Fuyu|Git|Mistral4|Phi4M"
)
# Not inside a word or a relative path; "-I/home/x" is one option and one path.
_PATH_START = r"(?:(?<![\w./~-])|(?<=\s-\w))"
# What only generated cards say; a name alone may stand in anybody's text.
_OWN_MARKS = (
    "hf_compress is not needed",
    "generated_from_trainer",
    "Model Card for Model ID",
)


def create_card(
    folder: str | Path,
    records: Iterable[Record],
    *,
    info: CardInfo | None = None,
    pictures: Sequence[str | Path] = (),
) -> Path:
    """Write the card of a saved model to `folder`/README.md, whole or not at all.

    Args:
        folder: of the saved model.
        records: of one run, one of them with the role "result".
        info: what the records do not know; None takes the folder's name and nothing else.
        pictures: PNG files to show; those outside the folder are copied into it.

    Raises:
        ConfigError: if the folder or a picture does not exist.
        RecordError: if there is not exactly one result, or more than one baseline.
        OutputExistsError: if there is a README.md that neither hf_compress nor the Trainer wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no model folder {folder}; save the model first")
    for path in pictures:
        if not Path(path).is_file():
            raise ConfigError(f"there is no picture {path}")
    target = folder / "README.md"
    if target.exists() and not any(m in target.read_text(encoding="utf-8", errors="replace") for m in _OWN_MARKS):
        raise OutputExistsError(f"{target} was written by someone else; move it away to have a card generated")
    text = render_card(records, info or CardInfo(folder.resolve().name), [Path(p).name for p in pictures])
    for path in pictures:
        if Path(path).resolve().parent != folder.resolve():
            shutil.copyfile(path, folder / Path(path).name)
    part = target.with_name(target.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)
    return target


def render_card(records: Iterable[Record], info: CardInfo, pictures: Sequence[str] = ()) -> str:
    """Return the card as text: metadata and body; the same records give the same bytes.

    Args:
        records: of one run, one of them with the role "result".
        info: what the records do not know.
        pictures: file names of pictures beside the card.

    Raises:
        RecordError: if there is not exactly one result, or more than one baseline.
    """
    import jinja2

    records = sort_records(records)
    base_at = tables.baseline_index(records)
    results = [r for r in records if r.role == "result"]
    if len(results) != 1:
        raise RecordError(f"a card needs one record with the role 'result', found {len(results)}")
    result, baseline = results[0], None if base_at is None else records[base_at]
    template = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")
    engine = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    body = engine.from_string(template).render(_context(result, baseline, info, pictures))
    # Loops and conditions in the template leave runs of empty lines.
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return without_local_paths(f"---\n{_metadata(result, info)}---\n\n{body}\n")


def without_local_paths(text: str) -> str:
    """Return `text` with absolute paths of this machine cut down to their last part; URLs stay."""
    # A path begins at its first slash, even after "name:" or "-I"; those of "https://" and "a/b/c" are none.
    text = re.sub(rf"{_PATH_START}/(?:home|Users)/[\w.-]+(?![\w.-]|/\w)", "~", text)
    text = re.sub(rf"(?:file:/*|{_PATH_START}~?)/(?:[\w.+@-]+/)+([\w.+@-]*)", r"\1", text)
    # One backslash, or two as in JSON.
    text = re.sub(r"\b[A-Za-z]:\\+Users\\+[^\\\s\"']+(?!\\|[^\\\s\"'])", "~", text)
    return re.sub(r"\b[A-Za-z]:\\+(?:[^\\\s\"']+\\+)+([^\\\s\"']*)", r"\1", text)


def _metadata(result: Record, info: CardInfo) -> str:
    from huggingface_hub import ModelCardData

    base: dict[str, Any] = {}
    if info.base_model:
        quantized_or_not = "quantized" if wording.is_quantized(result) else "finetune"
        relation = "adapter" if result.method.get("adapter") else quantized_or_not
        base = {"base_model": info.base_model, "base_model_relation": relation}
    evaluations = _evaluations(result, info)
    data = ModelCardData(
        language=list(info.language) or None,
        license=info.license,
        library_name="peft" if result.method.get("adapter") else "transformers",
        pipeline_tag=_task(result, info),
        datasets=list(info.datasets) or None,
        metrics=[m.name for m in result.measurements if tables.is_quality(m.name)] or None,
        tags=list(dict.fromkeys(["hf_compress", *wording.methods_of(result), *info.tags])),
        model_name=info.model_name if evaluations else None,
        eval_results=evaluations or None,
        **base,
    )
    return data.to_yaml() + "\n"


def _evaluations(result: Record, info: CardInfo) -> list[Any]:
    """Return the result's quality for the model index; only if the Hub's required fields are known."""
    from huggingface_hub import EvalResult

    data, task = result.dataset, _task(result, info)
    if task is None or not is_hub_id(str(data.get("id", ""))):
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type=data["id"],
            dataset_name=data.get("name", data["id"]),
            dataset_config=data.get("config"),
            dataset_split=data.get("split"),
            dataset_revision=data.get("revision"),
            metric_type=m.name,
            # numpy's floats would be dumped as Python objects, which the Hub refuses.
            metric_value=float(m.value),
        )
        for m in result.measurements
        if tables.is_quality(m.name)
    ]


def _context(result: Record, baseline: Record | None, info: CardInfo, pictures: Sequence[str]) -> dict[str, Any]:
    quantizer = (result.method.get("quantization_config") or {}).get("quant_method")
    export = dict(result.method.get("export") or {})
    needs = [*(["peft"] if result.method.get("adapter") else []), *([quantizer, "accelerate"] if quantizer else [])]
    needs += _RUNTIMES.get(str(export.get("format")), ())
    compared = [r for r in (baseline, result) if r is not None]
    rows = tables.comparison_rows(compared)
    shown = {k: v for k, v in result.method.items() if k not in ("architecture", "left_alone", "step", "parts")}
    shown = {k: {n: w for n, w in v.items() if n != "history"} if isinstance(v, dict) else v for k, v in shown.items()}

    def table(names: Callable[[str], bool]) -> str:
        return wording.before_after_table([r for r in rows if names(r.name)], baseline, result)

    return {
        "title": info.model_name,
        "summary": _summary(result, baseline, info),
        "loads_with": wording.loads_with(quantizer, export.get("format"), bool(result.method.get("adapter"))),
        "packages": " ".join(["torch", "transformers", *needs]),
        "snippet": _snippet(result, info),
        "quality_table": table(tables.is_quality),
        "data_sentence": wording.data_sentence(result, baseline),
        "size_table": table(lambda name: name in tables.SIZE_METRICS),
        "speed_table": table(lambda name: name in tables.SPEED_METRICS),
        "speed_sentence": wording.speed_sentence(result, baseline),
        "spreads": wording.spread_lines(rows, compared),
        "notes": result.notes,
        "pictures": [{"file": name, "title": Path(name).stem.replace("_", " ")} for name in pictures],
        "method": wording.listing(wording.as_yaml(shown)) if shown else "",
        "left_alone": ", ".join(f"`{name}`" for name in result.method.get("left_alone", ())),
        "recipe": wording.listing(info.recipe.strip()),
        "command": result.command,
        "provenance": wording.provenance_lines(result),
        "related": info.related,
        "limits": _limits(result, info),
        "license": info.license,
        "base_model": info.base_model,
        "papers": wording.papers_of(result),
    }


def _summary(result: Record, baseline: Record | None, info: CardInfo) -> str:
    what, adapter = result.method.get("architecture") or "model", result.method.get("adapter")
    sentence = f"An adapter ({adapter.get('peft_type')}) on a `{what}`" if adapter else f"A `{what}`"
    if info.base_model:
        sentence += f" made from [{info.base_model}](https://huggingface.co/{info.base_model})"
        sentence += f" (revision `{info.base_model_revision}`)" if info.base_model_revision else ""
    elif baseline is not None:
        sentence += f" made from the model called {baseline.model} below"
    methods = [m for m in wording.methods_of(result) if m != "bitsandbytes"]
    sentence += f" by {', '.join(methods)}" if methods else ""
    return f"{sentence} with hf_compress."


def _snippet(result: Record, info: CardInfo) -> str:
    place = f'"{info.repo_id}")' if info.repo_id else '".")  # this folder, or its id on the Hub'
    if result.method.get("export"):
        names = ", ".join(result.method["export"].get("inputs", ())) or "the inputs that it was exported with"
        return (
            "from transformers.exporters import ExportedModel\n\n"
            f"model = ExportedModel.from_pretrained({place}\n# model(...) takes {names}"
        )
    auto = _auto_class(result)
    name = auto[0] if auto else result.method.get("architecture") or "AutoModel"
    adapter = result.method.get("adapter")
    if adapter:
        base = info.base_model or adapter["base"]
        hint = "" if "/" in base else "  # the folder of the model that it was trained on"
        return (
            f"from peft import PeftModel\nfrom transformers import {name}\n\n"
            f'base = {name}.from_pretrained("{base}"){hint}\nmodel = PeftModel.from_pretrained(base, {place}'
        )
    return f"from transformers import {name}\n\nmodel = {name}.from_pretrained({place}"


def _auto_class(result: Record) -> tuple[str, str] | None:
    """Return the Auto class and the Hub's task; None where the name of the class does not tell."""
    architecture = result.method.get("architecture") or ""
    if _EXCEPTIONS.match(architecture):
        return None
    return next((found for end, found in _AUTO_CLASSES.items() if architecture.endswith(end)), None)


def _task(result: Record, info: CardInfo) -> str | None:
    auto = _auto_class(result)
    return info.pipeline_tag or (auto[1] if auto else None)


def _limits(result: Record, info: CardInfo) -> list[str]:
    standard = [
        "Only what stands above was measured; other data, tasks, languages and devices were not.",
        "The weaknesses and biases of the model it was made from are still there, and compression can add to them.",
    ]
    if not any(tables.is_quality(m.name) for m in result.measurements):
        standard.insert(0, "Its quality was not measured.")
    return [*info.limits, *standard]
