"""Cards: every number is in a record, the metadata is plain, the snippet runs, and the text is pinned."""

import dataclasses
import re
from itertools import permutations
from pathlib import Path

import pytest
import records
import tiny
import yaml
from huggingface_hub import ModelCard

from hf_compress import create_card
from hf_compress.errors import ConfigError, OutputExistsError, RecordError
from hf_compress.hub.card import CardInfo, render_card, without_local_paths
from hf_compress.measurement.notes import honest_notes
from hf_compress.measurement.record import load_records
from hf_compress.report.tables import format_change, format_spread, format_value

GOLDEN = Path(__file__).with_name("golden.md")
INFO = CardInfo(
    model_name="digits",
    base_model="someone/vit-digits",
    base_model_revision="abc123",
    license="apache-2.0",
    language=("en",),
    limits=("Only for digits.",),
    recipe="name: digits\nseed: 0",
)


def noted():
    teacher, shrunk, quantized = records.three()
    return [teacher, shrunk, dataclasses.replace(quantized, notes=honest_notes(quantized, teacher, shrunk))]


def numbers(text):
    return set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text))


def unknown_numbers(card, of):
    """Return the numbers in the text of a card that no record has."""
    body = re.sub(r"```.*?```", "", card.split("---", 2)[2], flags=re.S)
    # Names of cards, licences, papers and base models have numbers that nobody measured.
    body = re.sub(r"^# .*", "", body, flags=re.M)
    body = re.sub(r"`[a-z]+-\d\.\d`|arXiv:\S+|\[[\w-]+/[\w.-]+\]\(https:\S+\)", "", body)
    known = set()
    for record in of:
        # Names such as int8 are no measurements; notes are part of the record.
        body = re.sub(rf"\b{re.escape(record.model)}\b", "", body)
        known |= numbers(f"{record.dataset} {record.environment} {record.seed} {record.notes}")
        for m in record.measurements:
            known |= numbers(f"{format_value(m)} {format_spread(m)} {m.conditions} {len(m.samples)}")
    for one, other in permutations(of, 2):
        pairs = ((a, b) for a in one.measurements for b in other.measurements if a.name == b.name)
        for a, b in pairs:
            known |= numbers(format_change(a, b)) if a.conditions == b.conditions else set()
    return numbers(body.replace("8x8", "").replace(INFO.base_model_revision, "")) - known


def test_every_number_of_the_card_is_in_a_record():
    card = render_card(noted(), INFO)
    assert len(numbers(card)) > 30
    assert unknown_numbers(card, noted()) == set()


@pytest.mark.parametrize(
    "folder",
    sorted(p for p in (Path(__file__).parents[2] / "model_cards").iterdir() if p.is_dir()),
    ids=lambda p: p.name,
)
def test_every_number_of_the_gallery_is_in_its_records(folder):
    card = (folder / "README.md").read_text()
    assert len(numbers(card)) > 30
    assert unknown_numbers(card, load_records(folder / "records")) == set()
    assert all((folder / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card))


@pytest.mark.parametrize("true", ["98.89 %", "+0.28 points", "208 kB", "x0.60", "0.953 ms", "360 samples", "x1.99"])
def test_a_number_that_was_tampered_with_is_found(true):
    card = render_card(noted(), INFO)
    assert true in card
    assert unknown_numbers(card.replace(true, re.sub(r"\d", "7", true)), noted())


def test_the_card_of_fixed_records_is_the_golden_one_byte_for_byte():
    assert render_card(noted(), INFO) == GOLDEN.read_text()
    assert render_card(noted()[::-1], INFO) == GOLDEN.read_text()


def test_metadata_is_plain_complete_and_about_the_result_alone():
    data = ModelCard(render_card(noted(), INFO)).data.to_dict()
    assert data["base_model"] == "someone/vit-digits"
    assert data["base_model_relation"] == "quantized"
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == (
        "apache-2.0",
        "image-classification",
        "transformers",
    )
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert metrics == [{"type": "accuracy", "value": 356 / 360}]
    front = render_card(noted(), INFO).split("---")[1]
    assert "!!python" not in front
    assert yaml.safe_load(front) == data


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_the_card_of_an_exported_model_says_what_runs_it_and_its_code_does(tmp_path, format, package):
    pytest.importorskip(package)
    pytest.importorskip("onnxscript")
    from hf_compress import export, measure

    tiny.bert().save_pretrained(tmp_path / "source")
    export(tmp_path / "source", format, tmp_path / "out")
    folders = {"source": tmp_path / "source", "out": tmp_path / "out"}
    found = measure(folders, batch_sizes=(1,), rounds=1, seconds=0.0, memory=False, result="out")
    info = CardInfo("small", base_model="a/b", license="mit", related=("a/b-source",))
    card = create_card(tmp_path / "out", found, info=info).read_text()
    assert package in re.search(r"pip install (.*)", card)[1].split()
    assert "[a/b-source](https://huggingface.co/a/b-source)" in card
    assert "what [a/b](https://huggingface.co/a/b) asks for counts here too" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    scope = {}
    exec(code.replace('"."', repr(str(tmp_path / "out"))), scope)
    inputs = {name: tiny.torch.ones(1, 8).long() for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert scope["model"](**inputs).logits.shape == (1, 2)
    assert ModelCard(card).data.tags == ["hf_compress", "export"]


def test_what_is_not_known_is_left_out():
    teacher, shrunk, _ = records.three()
    card = render_card([teacher, dataclasses.replace(shrunk, role="result")], CardInfo("small"))
    data = ModelCard(card).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language", "datasets"} & set(data)
    assert "None" not in card
    assert "[More" not in card
    finetuned = CardInfo("small", base_model="a/b")
    relation = render_card([teacher, dataclasses.replace(shrunk, role="result")], finetuned)
    assert "base_model_relation: finetune" in relation


@pytest.mark.parametrize("method", [{}, {"architecture": None}, {"architecture": "NewNet"}])
def test_a_record_without_method_quality_or_baseline_still_gives_a_card(method):
    bare = dataclasses.replace(
        records.three()[2], method=method, dataset={}, measurements=(), environment={}, seed=None, command=""
    )
    card = render_card([bare], CardInfo("bare"))
    assert ("NewNet" in card) == (method.get("architecture") == "NewNet")
    assert "How to reproduce" not in card
    assert f"{method.get('architecture') or 'AutoModel'}.from_pretrained" in card
    assert "Its quality was not measured." in card


@pytest.mark.parametrize("make", [tiny.bert, tiny.vit], ids=["text", "image"])
def test_the_load_snippet_runs_as_pasted(tmp_path, monkeypatch, make):
    model = make()
    model.save_pretrained(tmp_path)
    record = records.record("m", "result", 0.5, 1, 1, (1.0, 2.0), architecture=type(model).__name__)
    create_card(tmp_path, [record])
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.S).group(1)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert type(names["model"]) is type(model)


def test_a_card_is_written_with_its_pictures_and_again_the_same(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "plot.png").write_bytes(b"png")
    for _ in range(2):
        create_card(tmp_path / "model", noted(), info=INFO, pictures=[tmp_path / "plot.png"])
    assert (tmp_path / "model" / "plot.png").read_bytes() == b"png"
    assert "![plot](plot.png)" in (tmp_path / "model" / "README.md").read_text()
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "plot.png"]


def test_bad_input_is_refused_and_nothing_is_written(tmp_path):
    for own in (b"# My own words", b"Made with hf_compress, described by hand", "caf\u00e9".encode("latin-1")):
        (tmp_path / "README.md").write_bytes(own)
        with pytest.raises(OutputExistsError, match="written by someone else"):
            create_card(tmp_path, noted())
        assert (tmp_path / "README.md").read_bytes() == own
    with pytest.raises(ConfigError, match="no model folder"):
        create_card(tmp_path / "gone", noted())
    with pytest.raises(ConfigError, match="no picture"):
        create_card(tmp_path, noted(), pictures=["gone.png"])
    with pytest.raises(RecordError, match="one record with the role 'result', found 0"):
        render_card(records.three()[:2], INFO)
    with pytest.raises(ConfigError, match="must be a Hub id"):
        CardInfo("x", base_model=str(tmp_path))


def test_paths_of_this_machine_are_cut_down():
    quantized = dataclasses.replace(
        noted()[2], command="hf-compress run /home/anna/secret/my.yaml --output-dir /srv/x/out"
    )
    card = render_card([quantized], INFO)
    assert "anna" not in card
    assert "/srv" not in card
    assert "my.yaml" in card


def test_whole_training_arguments_and_kept_units_stay_readable():
    method = {
        "training": {f"option_{i}": i if i % 2 else None for i in range(200)},
        "kept": list(range(3000)),
        "cache": Path("/srv/x/cache"),
    }
    teacher, _, quantized = noted()
    card = render_card([teacher, dataclasses.replace(quantized, method=method)], INFO)
    done = card.split("## What was done")[1].split("## How to reproduce")[0]
    assert done.count("\n") < 120
    assert "3000 values, from 0 to 2999" in done
    assert done.strip().startswith("<details>")
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", done, re.S).group(1))["training"]["option_7"] == 7
    assert "null" not in done
    assert "/srv" not in done
    assert unknown_numbers(card, noted()) == set()
    short = render_card(noted(), INFO)
    assert "<details>" not in short


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--models teacher:/home/anna/x/m", "--models teacher:m"),
        ("run -I/home/anna/x", "run -Ix"),
        ("run /home/anna", "run ~"),
        ("file:///home/anna/m", "m"),
        ("~/models/m", "m"),
        (r"C:\Users\anna", "~"),
        (r"C:\Users\anna\m", "m"),
        (r'"C:\\Users\\anna\\m"', '"m"'),
        ("https://huggingface.co/a/b/c", None),
        ("s3://bucket/a/b", None),
        ("./a/b and a/b/c and 1049 samples/s", None),
    ],
)
def test_paths_lose_all_but_their_last_part_and_the_rest_stays(text, expected):
    assert without_local_paths(text) == (text if expected is None else expected)
