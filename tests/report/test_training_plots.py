import pytest
import tiny

from hf_compress import PruningConfig, PruningTrainer
from hf_compress.errors import RecordError
from hf_compress.report.training_plots import plot_sparsities, plot_training


def test_the_ramp_is_drawn_beside_the_loss_with_what_was_logged(tmp_path):
    arguments = tiny.arguments(tmp_path, eval_strategy="steps", eval_steps=4)
    rows = tiny.sentences()
    trainer = PruningTrainer(
        tiny.bert(), arguments, pruning=PruningConfig(0.8, frequency=1), train_dataset=rows, eval_dataset=rows[:8]
    )
    trainer.train()
    left = plot_training(trainer.state.log_history)
    (right,) = [axes for axes in left.figure.axes if axes is not left]
    drawn = {line.get_label(): line for axes in (left, right) for line in axes.get_lines()}
    assert set(drawn) == {"training loss", "evaluation loss", "schedule", "sparsity"}
    logged = [e for e in trainer.state.log_history if "loss" in e]
    assert list(drawn["training loss"].get_ydata()) == [e["loss"] for e in logged]
    assert list(drawn["sparsity"].get_ydata()) == [100 * e["sparsity"] for e in logged]
    assert list(drawn["evaluation loss"].get_xdata()) == [4, 8]
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "](training.png)" in card
    assert "](sparsity.png)" in card
    assert (tmp_path / "sparsity.png").stat().st_size > 5000


def test_every_weight_has_its_cell():
    names = {"h.0.mlp.fc.weight": 0.5, "h.1.mlp.fc.weight": 0.25, "h.1.attn.weight": 0.75, "pooler.weight": 1.0}
    axes = plot_sparsities(names)
    cells = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    rows = [t.get_text() for t in axes.get_yticklabels()]
    columns = [t.get_text() for t in axes.get_xticklabels()]
    assert columns == ["-", "0", "1"]
    found = {(rows[r], columns[c]): text for (r, c), text in cells.items()}
    assert found == {("mlp.fc", "0"): "50", ("mlp.fc", "1"): "25", ("attn", "1"): "75", ("pooler", "-"): "100"}


def test_without_anything_to_draw_it_says_what_is_missing():
    with pytest.raises(RecordError, match="train with a pruning callback"):
        plot_training([{"loss": 1.0, "step": 1}])
    with pytest.raises(RecordError, match="attach the pruner"):
        plot_sparsities({})
