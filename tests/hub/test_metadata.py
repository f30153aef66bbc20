"""What is wrong with a card's metadata is found before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_compress.errors import PushRefusedError
from hf_compress.hub.metadata import metadata_problems
from hf_compress.hub.push import push

from .hub_server import HubServer

RESULT = """model-index:
- name: small
  results:
  - task: {{type: text-classification}}
    dataset: {{type: {dataset}, name: SST-2}}
    metrics:
    - {{type: accuracy, value: {value}}}
"""
# Name -> metadata and a part of what is said about it.
BAD = {
    "broken yaml": ("a: [", "cannot be read"),
    "python object": ("n: !!python/object/apply:os.getcwd []", "cannot be read"),
    "tab": ("a:\n\t- b", "cannot be read"),
    "no mapping": ("- a", "cannot be read"),
    "a key twice": ("license: mit\ntags: [a]\nlicense: apache-2.0", "the key 'license' comes twice"),
    "a key twice, inside": ("co2_eq_emissions: {source: a, source: b}", "the key 'source' comes twice"),
    "license is a number": ("license: 2", "license: expected the Hub's id"),
    "license is a name": ("license: Apache License 2.0", "license: expected the Hub's id"),
    "license is a date": ("license: 2024-01-01", "write it in quotes"),
    "unnamed license": ("license: other", "needs a license_name"),
    "norwegian": ("language: no", "found False; write it in quotes"),
    "language is a name": ("language: [English]", "language: expected ISO 639"),
    "base is a path": ("base_model: /models/bert", "base_model: expected ids"),
    "base is a relative path": ("base_model: ../bert", "base_model: expected ids"),
    "base is an address": ("base_model: https://hub/a/b", "base_model: expected ids"),
    "unknown relation": ("base_model: a/b\nbase_model_relation: distilled", "expected one of adapter"),
    "relation to nothing": ("base_model_relation: quantized", "found it alone"),
    "dataset is a path": ("datasets: [./data/train.csv]", "datasets: expected ids"),
    "datasets are a mapping": ("datasets: {a: b}", "datasets: expected ids"),
    "tags are no list": ("tags: small", "tags: expected a list"),
    "a tag is a number": ("tags: [8]", "tags: expected a list"),
    "metrics are no list": ("metrics: accuracy", "metrics: expected a list"),
    "task has spaces": ("pipeline_tag: Text Classification", "pipeline_tag: expected one of the Hub's tasks"),
    "library is a list": ("library_name: [transformers]", "library_name: expected"),
    "newer is no id": ("new_version: a/b/c", "new_version: expected an id"),
    "index is no list": ("model-index: {name: a}", "model-index: expected a list"),
    "result without data": ("model-index:\n- name: x\n  results:\n  - task: 1", "cannot be read"),
    "value is missing": (RESULT.format(dataset="sst2", value="null"), "found None"),
    "value is not finite": (RESULT.format(dataset="sst2", value=".nan"), "found nan"),
    "value is text": (RESULT.format(dataset="sst2", value="90 %"), "found '90 %'"),
    "measured on a path": (RESULT.format(dataset="../data", value="0.9"), "expected the id of a dataset"),
}
GOOD = {
    "none": "# Only text\n\n---\n\nand a line",
    "empty": "---\n---\n",
    "all": "---\nlicense: other\nlicense_name: mine\nlanguage: [en, 'no', zh-CN]\nbase_model: [a/b, bert-base]\n"
    "base_model_relation: merge\ndatasets: glue\ntags: [x]\nco2_eq_emissions: 3\n"
    + RESULT.format(dataset="stanfordnlp/sst2", value="0.9")
    + "---\ntext",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_metadata_is_refused_before_any_request(hub: HubServer, model: Path, kind: str) -> None:
    metadata, message = BAD[kind]
    (model / "README.md").write_text(f"---\n{metadata}\n---\n# Title\n")
    with pytest.raises(PushRefusedError) as caught:
        push(model, "tester/small")
    assert message in str(caught.value)
    assert "README.md: " in str(caught.value)
    assert hub.requests == []


def test_metadata_without_an_end_is_not_taken_for_text() -> None:
    assert "no end" in next(metadata_problems("---\nlicense: mit\n\n# Title\n"))


@pytest.mark.parametrize("kind", GOOD)
def test_good_metadata_passes(kind: str) -> None:
    assert list(metadata_problems(GOOD[kind])) == []
