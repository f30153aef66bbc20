"""A run that was killed and started again ends with the weights of one that was not."""

import json
import signal
from pathlib import Path
from random import Random

import pytest
import tiny
import torch
from forks import two_forks

from hf_compress import CompressionConfig, CompressionTrainer, PruningConfig, PruningTrainer
from hf_compress.errors import CheckpointError
from hf_compress.training.checkpoint import last_complete_checkpoint

SCRIPT = Path(__file__).with_name("killable.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two that fork: what is resumed is another process than what was killed, with other hashes."""
    with two_forks(SCRIPT, tmp_path_factory) as both:
        yield both


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, runs):
    folders = {}
    for model in ("bert", "vit"):
        folders[model] = tmp_path_factory.mktemp(model)
        done = runs[0](folders[model], "never", model)
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
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, runs, uninterrupted, model, trigger, resumes_at
):
    first, again = runs
    assert first(tmp_path, trigger, model).returncode == -signal.SIGKILL
    assert last_complete_checkpoint(tmp_path, files=["pruning_state.safetensors"]).name == resumes_at
    done = again(tmp_path, "resume", model)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model.safetensors").read_bytes() == (uninterrupted[model] / "model.safetensors").read_bytes()


KINDS = {
    "platon": {"sparsity": 0.7, "criterion": "platon", "regrow": True, "scope": "global"},
    "magnitude": {"sparsity": 0.7, "scope": "erk", "schedule": "iterative", "rounds": 4, "lr_rewind": 0.1},
    "lamp": {"sparsity": 0.7, "criterion": "lamp", "scope": "global"},
    "random": {"sparsity": 0.7, "criterion": "random", "structure": "block:4x2"},
    "threshold": {"criterion": "threshold", "threshold": 0.02, "schedule": "linear"},
    "relative_threshold": {"criterion": "relative_threshold", "regrow": True},
    "taylor": {"criterion": "taylor", "structure": "2:4"},
    "taylor units": {"criterion": "taylor", "structure": "ffn", "sparsity": 0.5},
    "movement": {"sparsity": 0.7, "criterion": "movement", "regrow": True, "structure": "rows"},
    "soft_movement": {"criterion": "soft_movement", "threshold": 0.49, "criterion_options": {"penalty": 1e4}},
    "keep": {"criterion": "keep"},
    # Norms that see some channels only, layers that are skipped.
    "hidden": {"criterion": "taylor", "structure": "hidden", "sparsity": 0.5},
    "layers": {"criterion": "taylor", "structure": "layers", "sparsity": 0.5},
}


def kill_and_resume(runs, folder, pruning, *steps):
    """Kill a run at each of `steps` in turn; then let it end, and compare with one that was never killed."""
    first, again = runs
    whole = folder.with_name("whole")
    done = first(whole, "never", "bert", pruning)
    assert done.returncode == 0, done.stderr[-2000:]
    for number, step in enumerate(steps):
        trigger = f"step:{step}" if number == 0 else f"resume,step:{step}"
        assert runs[number % 2](folder, trigger, "bert", pruning).returncode == -signal.SIGKILL
    done = again(folder, "resume", "bert", pruning)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["platon", "magnitude", "hidden", "layers"])
def test_scores_shadows_and_rewinding_resume_bit_for_bit(tmp_path, runs, name):
    kill_and_resume(runs, tmp_path / "killed", json.dumps(KINDS[name]), 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_two_kills_at_random_steps_change_nothing_under_any_criterion(tmp_path, runs, name):
    """26 kills in all."""
    random = Random(name)
    step = random.randint(4, 10)
    steps = step, random.randint(step // 3 * 3 + 1, 11)
    kill_and_resume(runs, tmp_path / "killed", json.dumps(KINDS[name]), *steps)


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
    assert last_complete_checkpoint(folder, files=["pruning_state.safetensors"]).name == "checkpoint-4"
    with pytest.raises(CheckpointError, match=f"{name} is missing.*resume from checkpoint-4"):
        trained.train(resume_from_checkpoint=str(folder / "checkpoint-8"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "pruning_state.safetensors"])
def test_one_flipped_bit_in_a_checkpoint_is_found_and_the_one_before_taken(trained, name):
    folder = Path(trained.args.output_dir)
    assert last_complete_checkpoint(folder, files=trained.checkpoint_files).name == "checkpoint-8"
    path = folder / "checkpoint-8" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert last_complete_checkpoint(folder, files=trained.checkpoint_files).name == "checkpoint-4"
    with pytest.raises(CheckpointError, match=f"{name} was changed.*resume from checkpoint-4"):
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


def test_nothing_starts_from_the_newest_of_checkpoints_that_are_all_broken(trained):
    for folder in Path(trained.args.output_dir).glob("checkpoint-*"):
        (folder / "optimizer.pt").unlink()
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole"):
        trained.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_the_best_checkpoint_is_one_at_the_final_sparsity(tmp_path):
    """The denser the better, so that a stock Trainer would take the first checkpoint."""
    arguments = tiny.arguments(
        tmp_path,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="density",
        greater_is_better=True,
    )
    trainer = PruningTrainer(
        tiny.bert(),
        arguments,
        pruning=PruningConfig(sparsity=0.9, scope="uniform", frequency=1, end=0.5),
        train_dataset=tiny.sentences(),
        eval_dataset=tiny.sentences(8),
        compute_metrics=lambda _: {"density": 1 - trainer.pruner.sparsity},
    )
    trainer.train()
    assert int(trainer.state.best_model_checkpoint.rsplit("-")[-1]) >= 4
    assert trainer.pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    trainer.pruner.check()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_global_step"] in (None, 2)
    assert torch.count_nonzero(trainer.model.bert.encoder.layer[0].output.dense.weight) == round(0.1 * 512)
