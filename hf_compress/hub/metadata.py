"""What the Hub would refuse in the metadata of a card, found before anything is sent.

Level: outside. The rules are those of the Hub's check of README files, as far as they need no list that it alone has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hf_compress.hub.config import HUB_ID
from hf_compress.plain import read_yaml

_SLUG = re.compile(r"[a-z0-9][a-z0-9.+_-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")


def metadata_problems(text: str) -> Iterator[str]:
    """Yield one sentence for each thing that is wrong with the metadata of a README.

    Args:
        text: of the whole file; one without metadata has no problems.
    """
    import yaml
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.match(text)
    if block is None:
        if re.match(r"\s*---[ \t]*\r?\n\s*[\w-]+:", text):
            yield "its metadata has no end; expected a second line of ---"
        return
    try:
        # Refuses keys that come twice and aliases that multiply; the values are those of YAML 1.1, dates too.
        read_yaml(block[2])
        data = yaml.safe_load(block[2]) or {}
        found = list(_field_problems(data)) if isinstance(data, Mapping) else []
        if found:
            yield from found
            return
        # What is left is the structure of the evaluation results.
        ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        yield f"its metadata cannot be read ({reason}); expected plain YAML between two lines of ---"


def _field_problems(data: Mapping[str, Any]) -> Iterator[str]:
    for key, (rule, expected) in _RULES.items():
        value = data.get(key)
        if value is not None and not rule(value):
            yield f"{key}: expected {expected}, found {value!r}{_hint(value)}"
    if data.get("base_model_relation") is not None and not data.get("base_model"):
        yield "base_model_relation: expected beside base_model, found it alone; name the base or leave it away"
    if data.get("license") == "other" and not data.get("license_name"):
        yield "license: 'other' needs a license_name, and a license_link to its text"
    yield from _index_problems(data.get("model-index"))


def _index_problems(index: Any) -> Iterator[str]:
    """Yield what is wrong with evaluation results, beyond what the client finds when it reads them."""
    models = index if isinstance(index, list) else []
    results = [r for m in models if isinstance(m, Mapping) for r in m.get("results") or () if isinstance(r, Mapping)]
    for result in results:
        for metric in result.get("metrics") or ():
            value = metric.get("value") if isinstance(metric, Mapping) else None
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                yield f"model-index: expected each metric to have a finite number as its value, found {value!r}"
        dataset = result.get("dataset")
        kind = dataset.get("type") if isinstance(dataset, Mapping) else None
        if isinstance(kind, str) and not HUB_ID.fullmatch(kind):
            yield f"model-index: expected the id of a dataset as its type, found {kind!r}"


def _hint(value: Any) -> str:
    # YAML reads the language "no" as false, and 1.0 or a date as what they look like.
    return "" if isinstance(value, (str, list, Mapping)) else "; write it in quotes"


def _text(pattern: re.Pattern[str] | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and (pattern is None or pattern.fullmatch(value) is not None)


def _texts(pattern: re.Pattern[str] | None = None, alone: bool = True) -> Callable[[Any], bool]:
    """Return a check of a list of strings, or with `alone` of a single one too."""
    one = _text(pattern)
    return lambda value: (isinstance(value, list) and all(map(one, value))) or (alone and one(value))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "license": (_texts(_SLUG), "the Hub's id of a license, such as apache-2.0"),
    "license_name": (_text(), "a string"),
    "license_link": (_text(), "a string"),
    "language": (_texts(_LANGUAGE), "ISO 639 codes such as en"),
    "base_model": (_texts(HUB_ID), "ids on the Hub such as owner/name, no paths"),
    "base_model_relation": (lambda value: value in _RELATIONS, f"one of {', '.join(_RELATIONS)}"),
    "datasets": (_texts(HUB_ID), "ids on the Hub such as owner/name, no paths"),
    "new_version": (_text(HUB_ID), "an id on the Hub such as owner/name"),
    "metrics": (_texts(alone=False), "a list of strings"),
    "tags": (_texts(alone=False), "a list of strings"),
    "pipeline_tag": (_text(_SLUG), "one of the Hub's tasks, such as text-classification"),
    "library_name": (_text(), "the name of a library, such as transformers"),
    "model-index": (lambda value: isinstance(value, list), "a list of models with their results"),
}
