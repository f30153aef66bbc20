"""Records, cards and names of repos made of anything."""

import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from hf_compress.errors import HfCompressError, RecordError
from hf_compress.hub.card import render_card
from hf_compress.hub.config import CardInfo, is_hub_id
from hf_compress.hub.push import push
from hf_compress.measurement.record import Measurement, Record, load_record, save_record
from hf_compress.report.tables import compare_table

from .inputs import JSON, PATHS, TEXTS, bad_inputs, refused

GOOD = Record(
    "small", "result", (Measurement("latency", 1.0, "ms", {"batch_size": 1}, (1.0, 1.1)),), {"device": "cpu"}
).to_dict()
FIELDS = sorted(GOOD)


@st.composite
def records(draw):
    """A record in which some values, or some of a measurement, are anything that JSON can hold."""
    data = json.loads(json.dumps(GOOD))
    place = draw(st.sampled_from([data, data["measurements"][0]]))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(st.sampled_from(sorted({*place, "x"})), st.text(max_size=4)))
        if draw(st.booleans()):
            place[name] = draw(JSON)
        else:
            place.pop(name, None)
    return data


@bad_inputs(records(), few=150, many=2500)
def test_a_record_of_anything_is_refused_or_makes_a_table_and_a_card(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(data))
        record = refused(load_record, path)
        if isinstance(record, Record):
            refused(save_record, record, path)
            assert load_record(path) == record
            assert isinstance(compare_table([record]), str)
            refused(render_card, [record], CardInfo("x"))
        else:
            assert isinstance(record, RecordError)


@pytest.mark.parametrize("text", ["[" * 10**5, "1" * 5000, "{}", "", "null", '{"schema_version": 1}'], ids=range(6))
def test_a_file_that_is_no_record_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError):
        load_record(tmp_path / "a.json")


CARD = sorted(f.name for f in CardInfo.__dataclass_fields__.values())


@bad_inputs(st.dictionaries(st.sampled_from(CARD), st.one_of(TEXTS, st.lists(TEXTS, max_size=3))), few=100, many=1500)
def test_the_metadata_of_a_card_is_yaml_that_says_what_was_given(given_):
    info = refused(CardInfo.from_dict, {"model_name": "x", **given_})
    if not isinstance(info, CardInfo):
        return
    card = refused(render_card, [Record.from_dict(GOOD)], info)
    if isinstance(card, str):
        _, front, _ = card.split("---\n", 2)
        metadata = yaml.safe_load(front)
        assert metadata["tags"][: 1 + len(info.tags)]
        assert metadata.get("base_model") == info.base_model


IDS = st.one_of(TEXTS, st.sampled_from(PATHS), st.from_regex(r"\A[\w./~-]{0,12}(/[\w.-]{0,6}){0,2}\Z"))


@bad_inputs(IDS, few=150, many=1500)
def test_a_repo_id_is_checked_before_anything_is_sent(name):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text("{}")
        refused(lambda: push(folder, name, dry_run=True))
    if is_hub_id(name):
        assert ".." not in Path(name).parts
        assert not name.startswith("/")


@pytest.mark.parametrize("folder", [*PATHS[:4], *PATHS[5:]])
def test_no_odd_folder_is_pushed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HfCompressError):
        push(folder, "me/x", dry_run=True)
