"""Repos that point to each other, and what a card takes over from its base model."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_compress import push, push_pair
from hf_compress.errors import HubError
from hf_compress.hub.base import with_base_facts
from hf_compress.hub.config import CardInfo

from .folders import read_folder, write_model
from .hub_server import HubServer

REPO = "tester/small"


def test_both_cards_name_the_other_and_the_copy_its_base(hub: HubServer, model: Path, tmp_path: Path) -> None:
    copy = write_model(tmp_path / "nf4")
    results = push_pair(model, copy, REPO, tag="v1")
    assert [r.repo_id for r in results] == [REPO, "tester/small-nf4"]
    source, quantized = (ModelCard(hub.files(r.repo_id)["README.md"].decode()) for r in results)
    assert "[tester/small-nf4](https://huggingface.co/tester/small-nf4)" in source.text
    assert f"[{REPO}](https://huggingface.co/{REPO})" in quantized.text
    assert (quantized.data.base_model, quantized.data.base_model_relation) == (REPO, "quantized")
    assert source.data.base_model != REPO
    push_pair(model, copy, REPO)
    assert [len(hub.commits(r.repo_id)) for r in results] == [1, 1]
    assert hub.files(REPO) == read_folder(model)


def test_a_dry_run_leaves_the_cards_alone(hub: HubServer, model: Path, tmp_path: Path) -> None:
    copy = write_model(tmp_path / "nf4")
    (copy / "README.md").unlink()
    before = read_folder(model)
    assert all(r.dry_run for r in push_pair(model, copy, REPO, dry_run=True))
    assert read_folder(model) == before
    assert not (copy / "README.md").exists()
    assert hub.requests == []
    with pytest.raises(HubError, match="ids with their owner"):
        push_pair(model, copy, "small")
    push_pair(model, copy, REPO)
    assert "tester/small" in (copy / "README.md").read_text()


def test_licence_language_and_revision_come_from_the_base(hub: HubServer, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n")
    oid = push(model, REPO).oid
    found = with_base_facts(CardInfo("new", base_model=REPO))
    assert (found.license, found.language, found.base_model_revision) == ("mit", ("de",), oid)
    given = CardInfo("new", base_model=REPO, license="apache-2.0", language=("en",))
    assert with_base_facts(given).license == "apache-2.0"
    assert with_base_facts(given).language == ("en",)


@pytest.mark.parametrize("fault", ["missing", "outage", "offline", "no base"])
def test_without_an_answer_the_card_is_as_it_was(hub: HubServer, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    info = CardInfo("new", base_model=None if fault == "no base" else REPO)
    if fault == "outage":
        hub.fail_next("models", 503, b"<html>", times=9)
    if fault == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert with_base_facts(info) == info
