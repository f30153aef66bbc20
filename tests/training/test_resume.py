"""A run that was killed and started again ends with the weights of one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from hf_compress import CompressionConfig, CompressionTrainer, PruningConfig, PruningTrainer
from hf_compress.errors import CheckpointError
from hf_compress.training.checkpoint import last_complete_checkpoint

SCRIPT = Path(__file__).with_name("killable.py")


def run(folder, trigger, model):
    return subprocess.run(
        [sys.executable, SCRIPT, folder, trigger, model], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = {}
    for model in ("bert", "vit"):
        folders[model] = tmp_path_factory.mktemp(model)
        done = run(folders[model], "never", model)
        assert done.returncode == 0, done.stderr[-2000:]
    return folders


@pytest.mark.parametrize(
    ("model", "trigger", "resumes_at"),
    [
        ("bert", "step:5", "checkpoint-3"),
        ("bert", "step:11", "checkpoint-9"),
        ("bert", "write:6:optimizer.pt", "checkpoint-3"),
        ("bert", "write:9:pruning_state.safetensors", "checkpoint-6"),
        ("bert", "write:6:trainer_state.json", "checkpoint-3"),
        # ViT's weights are saved under other names, which the stock Trainer does not load on resume.
        ("vit", "step:5", "checkpoint-3"),
        ("vit", "step:10", "checkpoint-9"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, uninterrupted, model, trigger, resumes_at):
    assert run(tmp_path, trigger, model).returncode == -signal.SIGKILL
    assert last_complete_checkpoint(tmp_path, pruning=True).name == resumes_at
    again = run(tmp_path, "resume", model)
    assert again.returncode == 0, again.stderr[-2000:]
    assert (tmp_path / "model.safetensors").read_bytes() == (uninterrupted[model] / "model.safetensors").read_bytes()


@pytest.fixture
def trained(tmp_path):
    arguments = tiny.arguments(tmp_path, save_strategy="steps", save_steps=4)
    trainer = PruningTrainer(
        tiny.bert(), arguments, pruning=PruningConfig(frequency=1), train_dataset=tiny.sentences()
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", b'{"epoch": 1'),
        ("model.safetensors", b""),
        ("optimizer.pt", b"PK"),
        ("rng_state.pth", None),
        ("scheduler.pt", None),
        ("pruning_state.safetensors", None),
    ],
)
def test_a_checkpoint_with_a_broken_file_is_passed_over_and_refused_by_name(trained, name, content):
    folder = Path(trained.args.output_dir)
    broken = folder / "checkpoint-8" / name
    broken.unlink() if content is None else broken.write_bytes(content)
    assert last_complete_checkpoint(folder, pruning=True).name == "checkpoint-4"
    with pytest.raises(CheckpointError, match=f"{name} is missing.*resume from checkpoint-4"):
        trained.train(resume_from_checkpoint=str(folder / "checkpoint-8"))


def test_resume_with_other_pruning_options_is_refused(trained):
    config = CompressionConfig(pruning=PruningConfig(frequency=1, sparsity=0.9))
    other = CompressionTrainer(tiny.bert(), trained.args, compression=config, train_dataset=tiny.sentences())
    with pytest.raises(CheckpointError, match="resume with the same options"):
        other.train(resume_from_checkpoint=True)


def test_resume_without_any_whole_checkpoint_says_so(tmp_path):
    trainer = PruningTrainer(tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.sentences())
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_one_at_the_final_sparsity(tmp_path):
    """Evaluation losses are made to rise, so that a stock Trainer would take the first, dense checkpoint."""
    arguments = tiny.arguments(
        tmp_path,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        learning_rate=0.0,
    )
    config = PruningConfig(sparsity=0.9, frequency=1, end=0.5)
    trainer = PruningTrainer(
        tiny.bert(), arguments, pruning=config, train_dataset=tiny.sentences(), eval_dataset=tiny.sentences(8)
    )
    trainer.train()
    assert int(trainer.state.best_model_checkpoint.rsplit("-")[-1]) >= 4
    assert trainer.pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    trainer.pruner.check()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_global_step"] in (None, 2)
    assert torch.count_nonzero(trainer.model.bert.encoder.layer[0].output.dense.weight) == round(0.1 * 512)
