import dataclasses

import pytest
import records
import tiny

from hf_compress import PruningConfig, PruningTrainer, compare
from hf_compress.errors import RecordError
from hf_compress.report.training_plots import curves, plot_histories, plot_sparsities, plot_training


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
    with pytest.raises(RecordError, match="no entry of the log has a loss"):
        plot_training([{"learning_rate": 1.0, "step": 1}])
    with pytest.raises(RecordError, match="no log of a training run"):
        plot_histories(records.three())
    with pytest.raises(RecordError, match="attach the pruner"):
        plot_sparsities({})


def test_each_run_behind_the_records_is_drawn_once_with_a_ramp_where_it_prunes(tmp_path):
    plain = [{"step": s, "loss": 1 / s, "epoch": 0.1} for s in (1, 2, 3)]
    pruned = [{**e, "sparsity": 0.2 * e["step"], "target_sparsity": 0.5} for e in plain]
    teacher, shrunk, _ = records.three()
    runs = {"teacher": {"history": curves(plain)}}
    both = {**runs, "student": {"history": curves(pruned)}, "shrunk": {"keep": {}}}
    found = [dataclasses.replace(teacher, method=runs), dataclasses.replace(shrunk, method=both, role="result")]
    figure = plot_histories(found).figure
    titles = [a.get_title(loc="left") for a in figure.axes]
    assert [t for t in titles if t] == ["teacher", "student"]
    (ramp,) = [line for a in figure.axes for line in a.get_lines() if line.get_label() == "sparsity"]
    assert list(ramp.get_ydata()) == [100 * e["sparsity"] for e in pruned]
    compare(found, tmp_path)
    assert "](training.png)" in (tmp_path / "comparison.md").read_text()


def test_a_long_log_is_thinned_and_keeps_what_is_drawn():
    found = curves([{"step": s, "loss": 1.0, "grad_norm": 2.0} for s in range(1000)])
    assert len(found) == 200
    assert found[1] == {"step": 5, "loss": 1.0}
