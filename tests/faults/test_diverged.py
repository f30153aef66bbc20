"""Weights that become NaN end the run with one error that names the step, and no checkpoint is made of them."""

import pytest
import tiny
import torch
from transformers import Trainer

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    PruningCallback,
    PruningConfig,
)
from hf_compress.errors import DivergedError

PRUNING = PruningConfig(sparsity=0.5, frequency=2, end=0.25)


def arguments(folder, **changes):
    # 8 images a step, one after the other.
    options = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1, "learning_rate": 1e-3}
    return tiny.arguments(folder, train_sampling_strategy="sequential", **{**options, **changes})


def images(broken_step=5):
    rows = tiny.images(64)
    rows[8 * (broken_step - 1) + 3]["pixel_values"][0, 0, 0] = torch.nan
    return rows


def checkpoints(folder):
    return sorted(p.name for p in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("changes", "step", "left"),
    [
        ({"logging_steps": 1}, 5, ["checkpoint-3"]),
        # Nothing is logged meanwhile: the next checkpoint would be of NaN, and take the place of the one before.
        ({"logging_steps": 100}, 6, ["checkpoint-3"]),
        ({"logging_steps": 100, "save_strategy": "no"}, 8, []),
    ],
    ids=["at a log", "at a checkpoint", "at the end"],
)
@pytest.mark.parametrize("method", ["pruning", "distillation"])
def test_weights_that_are_nan_end_training_before_they_are_saved(tmp_path, changes, step, left, method):
    config = {"pruning": CompressionConfig(pruning=PRUNING), "distillation": CompressionConfig(DistillationConfig())}
    teacher = tiny.vit(1) if method == "distillation" else None
    args = arguments(tmp_path, **changes)
    trainer = CompressionTrainer(tiny.vit(), args, compression=config[method], teacher=teacher, train_dataset=images())
    where = "resume from checkpoint-3" if left else "train anew"
    with pytest.raises(DivergedError, match=rf"after step {step}, .*no number first at step 5.*{where}") as caught:
        trainer.train()
    assert ("task_loss, distillation_loss" in str(caught.value)) == (method == "distillation")
    assert checkpoints(tmp_path) == left


def test_the_error_tells_a_teacher_that_returns_nan_from_bad_data(tmp_path):
    teacher = tiny.vit(1)
    with torch.no_grad():
        teacher.classifier.bias[0] = torch.nan
    trainer = CompressionTrainer(
        tiny.vit(),
        arguments(tmp_path),
        compression=CompressionConfig(DistillationConfig()),
        teacher=teacher,
        train_dataset=tiny.images(64),
    )
    with pytest.raises(DivergedError, match=r"at step 1 \(distillation_loss\)"):
        trainer.train()


def test_after_a_good_checkpoint_and_better_data_the_run_ends_as_if_undisturbed(tmp_path):
    def trainer(folder, rows):
        config = CompressionConfig(pruning=PruningConfig(sparsity=0.5, criterion="movement", regrow=True, frequency=1))
        return CompressionTrainer(tiny.vit(), arguments(tmp_path / folder), compression=config, train_dataset=rows)

    whole = trainer("whole", tiny.images(64))
    whole.train()
    with pytest.raises(DivergedError):
        trainer("run", images()).train()
    again = trainer("run", tiny.images(64))
    again.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_an_infinite_loss_with_a_finite_gradient_goes_on(tmp_path):
    def trained(folder, offset):
        def loss(outputs, labels, num_items_in_batch=None):
            return torch.nn.functional.cross_entropy(outputs["logits"], labels) + offset

        trainer = CompressionTrainer(
            tiny.vit(),
            arguments(tmp_path / folder),
            compression=CompressionConfig(pruning=PRUNING),
            train_dataset=tiny.images(64),
            compute_loss_func=loss,
        )
        trainer.train()
        return trainer.model.state_dict()

    one, other = trained("one", 0.0), trained("other", torch.inf)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_compression_it_is_the_stock_trainer_which_goes_on(tmp_path):
    trainer = CompressionTrainer(tiny.vit(), arguments(tmp_path), compression=None, train_dataset=images())
    trainer.train()
    assert trainer.state.global_step == 8


@pytest.mark.parametrize("end", [0.25, 1.0], ids=["masks are final", "masks are still made"])
def test_the_callback_ends_a_stock_trainer_before_the_weights_are_saved(tmp_path, end):
    callback = PruningCallback(PruningConfig(sparsity=0.5, frequency=1, end=end))
    trainer = Trainer(tiny.vit(), arguments(tmp_path, logging_steps=100), train_dataset=images(), callbacks=[callback])
    with pytest.raises(DivergedError):
        trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-3"]
