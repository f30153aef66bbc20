import language
import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_compress import imports
from hf_compress.errors import ConfigError, MissingDependencyError
from hf_compress.measurement.harness import harness_metrics


def test_without_the_library_the_pip_line_is_given(monkeypatch):
    monkeypatch.setattr("hf_compress.imports.is_available", lambda package: False)
    with pytest.raises(MissingDependencyError, match="pip install lm-eval"):
        harness_metrics(None, ["hellaswag"])


@pytest.mark.skipif(not imports.is_available("lm_eval"), reason="lm-eval is not installed")
def test_a_task_is_scored_as_by_hand(tmp_path):
    folder = language.save_model(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = [{"start": "the cat", "label": i % 2} for i in range(6)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    task = {
        "task": "own", "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.parquet")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{start}}", "doc_to_target": "label",
        "doc_to_choice": ["sees", "hears"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(yaml.safe_dump(task))
    found = harness_metrics(tokenizer, ["own"], include_path=str(tmp_path / "tasks"))(model)

    def likelihood(word):
        ids = tokenizer(f"the cat {word}", return_tensors="pt")["input_ids"]
        begin = len(tokenizer("the cat")["input_ids"])
        logits = model(input_ids=ids).logits[0].detach().log_softmax(-1)
        return sum(float(logits[i - 1, ids[0, i]]) for i in range(begin, ids.shape[1]))

    chosen = int(likelihood("hears") > likelihood("sees"))
    assert found["own acc"] == sum(row["label"] == chosen for row in rows) / 6
    with pytest.raises(ConfigError, match="expected names of tasks"):
        harness_metrics(tokenizer, ["owl"], include_path=str(tmp_path / "tasks"))
