"""The JSON schema of records: it takes every record there is, and nothing broken."""

import dataclasses
import json
from pathlib import Path

import pytest
import records

from hf_compress.measurement.record import Measurement, Record
from hf_compress.measurement.schema import record_schema

jsonschema = pytest.importorskip("jsonschema")
GALLERY = sorted(Path(__file__).parents[2].glob("model_cards/*/records/*.json"))


def plain(record):
    return json.loads(json.dumps(record.to_dict()))


def test_records_of_tests_and_of_the_gallery_are_valid():
    jsonschema.Draft202012Validator.check_schema(record_schema())
    assert GALLERY
    for data in [*map(plain, records.three()), *(json.loads(p.read_text()) for p in GALLERY)]:
        jsonschema.validate(data, record_schema())


def test_its_fields_are_those_of_the_classes():
    schema = record_schema()
    assert set(schema["properties"]) == {f.name for f in dataclasses.fields(Record)}
    inner = schema["properties"]["measurements"]["items"]
    assert set(inner["properties"]) == {f.name for f in dataclasses.fields(Measurement)}


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2}, {"role": "best"}, {"seed": "0"}, {"measurements": [{"name": "x"}]}, {"notes": "none"},
        {"extra": 1},
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plain(records.three()[0]), **change}, record_schema())


def test_the_schema_beside_the_gallery_is_this_one():
    stored = Path(__file__).parents[2] / "model_cards" / "record.schema.json"
    assert json.loads(stored.read_text()) == record_schema()
