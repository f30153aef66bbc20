"""What killed runs leave behind: passed over or removed, said, and never mixed into a result."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from architectures import build
from oneshot_runs import rows
from transformers import Trainer, TrainerCallback

from hf_compress import OneShotConfig, PruningCallback, PruningConfig, PruningTrainer, prune_oneshot
from hf_compress.output import whole_folder
from hf_compress.training.checkpoint import last_complete_checkpoint

BATCHES = [{"input_ids": part} for part in rows().split(4)]


def leave(output, is_empty=False):
    """Leave what a process that was killed while it wrote `output`, or before, leaves there."""
    child = os.fork()
    if not child:
        with whole_folder(output) as part:
            if not is_empty:
                part.mkdir()
                (part / "model.safetensors").write_bytes(b"half")
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("is_empty", [False, True])
def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path, is_empty):
    output, mine = tmp_path / "out", tmp_path / ".out.12345678"
    leave(tmp_path / "out.other")
    leave(output, is_empty)
    mine.mkdir()
    (mine / "notes").write_text("precious")
    before = set(tmp_path.iterdir())
    assert len(before) == 3
    with whole_folder(output) as part:
        part.mkdir()
        (part / "config.json").write_text("{}")
        # Another one that fails leaves this one, which lives, alone.
        with pytest.raises(KeyError), whole_folder(output):
            raise KeyError
    assert [p.name for p in output.iterdir()] == ["config.json"]
    assert {p.name for p in tmp_path.iterdir()} == {"out", mine.name, *(p.name for p in before if "other" in p.name)}


def test_the_beginnings_of_another_run_are_no_part_of_a_model_pruned_in_memory(tmp_path):
    left = tmp_path / "out.part" / "block-00000"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out.part" / "state.json").write_text("{}")
    prune_oneshot(build("llama"), OneShotConfig(sparsity=0.5), BATCHES, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "oneshot.json",
    }  # fmt: skip


def test_a_run_that_was_killed_while_it_removed_its_parts_is_no_beginning_of_the_next(tmp_path, monkeypatch):
    build("llama").save_pretrained(tmp_path / "dense")

    def once():
        config = OneShotConfig(sparsity=0.5)
        prune_oneshot(tmp_path / "dense", config, BATCHES, tmp_path / "out", device="cpu")
        return {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    class Killed(Exception):
        pass

    def remove_one(folder, *_, **__):
        remove(sorted(Path(folder).glob("block-*"))[-1])
        raise Killed

    with monkeypatch.context() as patch:
        remove = shutil.rmtree
        patch.setattr(
            "hf_compress.pruning.oneshot.stream.shutil.rmtree",
            lambda place, *a, **k: remove_one(place) if str(place).endswith(".part") else remove(place, *a, **k),
        )
        with pytest.raises(Killed):
            once()
    whole = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    shutil.rmtree(tmp_path / "out")
    assert once() == whole


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_gives_the_same_weights(tmp_path, caplog):
    def trainer(folder):
        return PruningTrainer(
            tiny.bert(0, dropout=0.1),
            tiny.arguments(tmp_path / folder, save_strategy="steps", save_steps=3),
            pruning=PruningConfig(sparsity=0.5, frequency=1),
            train_dataset=tiny.sentences(),
        )

    whole = trainer("whole")
    whole.train()
    newest = tmp_path / "whole" / "checkpoint-6" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    shutil.rmtree(tmp_path / "whole" / "checkpoint-8")
    again = trainer("whole")
    with caplog.at_level(logging.WARNING, "hf_compress"):
        again.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is passed over, since it is not whole: optimizer.pt is missing or cut off" in caplog.text
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


class Seen(TrainerCallback):
    """Says at each save, before the callbacks after it, which checkpoint is whole."""

    def __init__(self):
        self.names = []

    def on_evaluate(self, args, state, control, **kwargs):
        assert not (Path(args.output_dir) / f"checkpoint-{state.global_step}").exists()

    def on_save(self, args, state, control, **kwargs):
        self.names.append(last_complete_checkpoint(args.output_dir, files=["pruning_state.safetensors"]).name)


@pytest.mark.parametrize("evaluates", ["no", "steps"])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_under_a_stock_trainer_masks_are_there_before_the_checkpoint_before_is_removed(tmp_path, strategy, evaluates):
    """It removes old checkpoints first and tells callbacks of the new one then."""
    seen, callback = Seen(), PruningCallback(PruningConfig(sparsity=0.5, frequency=1))
    limits = {"save_strategy": strategy, "save_steps": 4, "save_total_limit": 1, "per_device_train_batch_size": 16}
    arguments = tiny.arguments(tmp_path, eval_strategy=evaluates, eval_steps=4, **limits)
    data = {"train_dataset": tiny.sentences(), "eval_dataset": tiny.sentences(8)}
    Trainer(tiny.bert(), arguments, **data, callbacks=[seen, callback]).train()
    assert seen.names == ["checkpoint-4", "checkpoint-8"]
