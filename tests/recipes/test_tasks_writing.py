"""Chats, masks, texts that are written, sounds and embeddings."""

import logging
import math
import wave
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_tasks
import torch
from datasets import Audio, Dataset, Features, Value
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, Trainer

from hf_compress import CompressionConfig, EmbeddingTrainer, PruningConfig
from hf_compress.errors import ConfigError, DataError
from hf_compress.recipes.audio import resample
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.embeddings import embed, embedding_metrics
from hf_compress.recipes.tasks import build_task
from hf_compress.recipes.texts import load_texts
from hf_compress.training.embedding import mean_pooled

CHATS = [
    [{"role": "user", "content": "who saw it"}, {"role": "assistant", "content": "ann"}],
    [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was good"}],
] * 3


def build(folder, kind, rows, source, features=None, **options):
    file = tiny_tasks.write(folder / "rows.parquet", rows, features)
    return build_task(TaskConfig(type=kind, files={"train": file, "test": file}, **options), source)


def test_the_loss_on_chats_is_on_what_the_assistant_says(tmp_path):
    source = tiny_tasks.save_llama(tmp_path / "llama", tiny_tasks.CHAT_TEMPLATE)
    task = build(tmp_path, "causal-language-modeling", {"messages": CHATS}, source, text_columns=("messages",))
    words = tiny_tasks.tokenizer()
    for row, chat in zip(task.rows["test"], CHATS, strict=True):
        learnt = [i for i in row["labels"] if i != -100]
        assert words.decode(learnt).replace(" ", "").replace("##", "") == chat[1]["content"].replace(" ", "")
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    total, count = 0.0, 0
    for row in task.rows["test"]:  # one by one, without padding
        logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - float(logits[position - 1, label]), count + 1
    found = task.evaluate(model)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_where_the_template_does_not_mark_turns_the_loss_is_on_all_and_said_so(tmp_path, caplog):
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    source = tiny_tasks.save_llama(tmp_path / "llama", template)
    with caplog.at_level(logging.WARNING, "hf_compress"):
        task = build(tmp_path, "causal-language-modeling", {"messages": CHATS}, source, text_columns=("messages",))
    assert "the loss is on all tokens" in caplog.text
    assert task.source["loss"] == "all tokens"
    assert all(row["labels"] == row["input_ids"] for row in task.rows["test"])


@pytest.mark.parametrize(
    ("template", "length", "message"),
    [(None, 64, "needs a tokenizer with a chat template|has none"), (tiny_tasks.CHAT_TEMPLATE, 3, "no chat of the")],
)
def test_chats_that_teach_nothing_are_refused(tmp_path, template, length, message):
    source = tiny_tasks.save_llama(tmp_path / "llama", template)
    options = {"text_columns": ("messages",), "max_length": length}
    with pytest.raises(DataError, match=message):
        build(tmp_path, "causal-language-modeling", {"messages": CHATS}, source, **options)


@pytest.mark.parametrize("as_list", [False, True])
def test_lines_of_text_files_keep_their_ends(tmp_path, as_list):
    file = tmp_path / "my.txt"
    file.write_text("".join(f"{sentence}\n" for sentence in tiny_tasks.sentences(40)))
    found = load_texts(
        TaskConfig(type="causal-language-modeling", files={"train": [str(file)] if as_list else str(file)})
    )
    assert all(line.endswith("\n") for lines in found.rows.values() for line in lines)


def test_training_masks_anew_and_evaluation_always_the_same(tmp_path):
    source = tiny_tasks.save_bert(tmp_path / "bert", AutoModelForMaskedLM)
    rows = {"text": tiny_tasks.sentences(120)}
    one, other = (
        build(tmp_path, "masked-language-modeling", rows, source, max_length=16, mlm_probability=0.3) for _ in range(2)
    )
    first, again = (one.rows["test"][i] for i in (0, 0))
    assert torch.equal(first["input_ids"], again["input_ids"])
    for a, b in zip(one.rows["test"], other.rows["test"], strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])
        assert torch.equal(a["labels"], b["labels"])
    train = [one.rows["train"][i] for i in range(8)]
    masks = [one.collator(train)["labels"] for _ in range(2)]
    assert not torch.equal(*masks)
    model = AutoModelForMaskedLM.from_pretrained(source).eval()
    losses, right = [], []
    for row in one.rows["test"]:
        logits = model(row["input_ids"][None]).logits[0]
        for position in (row["labels"] != -100).nonzero()[:, 0]:
            losses.append(-float(logits[position].log_softmax(-1)[row["labels"][position]]))
            right.append(int(logits[position].argmax() == row["labels"][position]))
    found = one.evaluate(model)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_what_is_written_is_compared_with_the_target(tmp_path):
    source = tiny_tasks.save_t5(tmp_path / "t5")
    rows = {"source": ["it was"] * 4, "target": ["good", "bad", "the film", "in paris"]}
    task = build(tmp_path, "sequence-to-sequence", rows, source, prefix="who ", max_target_length=6)
    words = tiny_tasks.tokenizer()
    assert words.decode(task.rows["test"][0]["input_ids"], skip_special_tokens=True) == "who it was"
    answers = iter(rows["target"])

    class Writer(torch.nn.Linear):
        def generate(self, input_ids, **options):
            assert options["max_new_tokens"] == 6
            written = [words(next(answers))["input_ids"] for _ in input_ids]
            return torch.tensor([ids + [0] * (6 - len(ids)) for ids in written])

    assert task.evaluate(Writer(1, 1))["exact_match"] == 1.0
    assert task.evaluate(AutoModelForSeq2SeqLM.from_pretrained(source))["exact_match"] < 1


def test_sounds_are_resampled_without_what_is_too_high():
    time = np.arange(16000) / 16000
    low, high = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 6000 * time)
    found = resample((low + high).astype(np.float32), 16000, 8000)
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert len(found) == 8000
    assert np.abs(found - expected)[100:-100].max() < 0.01
    with pytest.raises(DataError, match="no samples"):
        resample(np.zeros(0, np.float32), 8000, 8000)


def wav(samples, rate, path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return str(path)


def test_sound_files_and_samples_give_the_same_rows(tmp_path):
    pytest.importorskip("soundfile")
    source, rows = tiny_tasks.save_ast(tmp_path / "ast"), tiny_tasks.tones(4)
    by_samples = build(tmp_path, "audio-classification", rows, source)
    files = [wav(s, 16000, tmp_path / f"{i}.wav") for i, s in enumerate(rows["audio"])]
    stored = {"audio": [{"path": f, "bytes": Path(f).read_bytes()} for f in files], "label": rows["label"]}
    # Not encoded by datasets, which would need FFmpeg.
    place = tmp_path / "files.parquet"
    Dataset.from_dict(stored).cast_column("audio", Audio()).to_parquet(place)
    config = TaskConfig(type="audio-classification", files={"train": str(place), "test": str(place)})
    by_files = build_task(config, source)
    assert by_files.labels == ("high", "low")
    for one, other in zip(by_samples.rows["test"], by_files.rows["test"], strict=True):
        assert one == other
    assert by_files.collator([by_files.rows["test"][i] for i in range(3)])["input_values"].shape == (3, 32, 16)


def test_sounds_need_their_rate(tmp_path):
    rows = tiny_tasks.tones(4)
    del rows["sampling_rate"]
    with pytest.raises(DataError, match="no column 'sampling_rate'"):
        build(tmp_path, "audio-classification", rows, tiny_tasks.save_ast(tmp_path / "ast"))


@pytest.fixture
def embedder(tmp_path):
    return tiny_tasks.save_bert(tmp_path / "teacher", AutoModel, seed=1)


def test_embeddings_are_means_over_tokens_that_are_no_padding(embedder):
    texts, words = tiny_tasks.sentences(5), tiny_tasks.tokenizer()
    model = AutoModel.from_pretrained(embedder).eval()
    for found, text in zip(embed(embedder, texts, 32), texts, strict=True):
        states = model(torch.tensor([words(text)["input_ids"]])).last_hidden_state[0]
        assert np.allclose(found, states.detach().mean(0).numpy(), atol=1e-5)


def test_similarities_are_ranked_over_all_pairs():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(9, 4)), generator.normal(size=(9, 4))

    def cosine(a, b):
        return a @ b / math.sqrt((a @ a) * (b @ b))

    ranked = [[cosine(e[i], e[j]) for i in range(9) for j in range(i + 1, 9)] for e in (one, other)]
    found = embedding_metrics(one, other)
    assert found["spearman"] == pytest.approx(stats.spearmanr(*ranked)[0])
    assert found["cosine"] == pytest.approx(np.mean([cosine(a, b) for a, b in zip(one, other, strict=True)]))
    assert set(embedding_metrics(one, other[:, :3])) == {"spearman"}


class Reference(Trainer):
    """The same loss written down once more, for a stock Trainer."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        rows = [s[m.bool()].mean(0) for s, m in zip(states, inputs["attention_mask"], strict=True)]
        return sum((r - w).square().mean() for r, w in zip(rows, inputs["labels"], strict=True)) / len(rows)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_embeddings_are_learnt_as_by_a_stock_trainer_with_that_loss(tmp_path, embedder, accumulation):
    source = tiny_tasks.save_bert(tmp_path / "student", AutoModel)
    rows = {"text": tiny_tasks.sentences()}
    task = build(tmp_path, "sentence-embeddings", rows, source, embedding_model=embedder)
    steps = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    arguments = tiny.arguments(tmp_path, **steps, train_sampling_strategy="sequential", remove_unused_columns=False)
    trained = []
    for kind, extra in ((Reference, {}), (EmbeddingTrainer, {"embedding_loss": "mse"})):
        shared = {k: v for k, v in task.for_trainer().items() if k != "compute_metrics"}
        trainer = kind(AutoModel.from_pretrained(source), arguments, **shared, **extra)
        trainer.loss_is_scaled_for_ga = trainer.model_accepts_loss_kwargs = False
        trainer.train()
        trained.append(trainer.model)
    for one, other in zip(*(m.parameters() for m in trained), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_pruned_embedder_is_a_plain_model_and_nearer_to_its_teacher(tmp_path, embedder):
    source = tiny_tasks.save_bert(tmp_path / "student", AutoModel)
    rows = {"text": tiny_tasks.sentences()}
    task = build(tmp_path, "sentence-embeddings", rows, source, embedding_model=embedder)
    config = CompressionConfig(pruning=PruningConfig(sparsity=0.5, structure="ffn", frequency=2))
    arguments = tiny.arguments(tmp_path / "out", max_steps=30, learning_rate=5e-3)
    trainer = EmbeddingTrainer(AutoModel.from_pretrained(source), arguments, compression=config, **task.for_trainer())
    before = task.evaluate(trainer.model)
    trainer.train()
    logged = trainer.evaluate()
    model, info = AutoModel.from_pretrained(
        trainer.save_compressed(tmp_path / "small")["model"], output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.intermediate_size == 16
    assert task.evaluate(model)["cosine"] > before["cosine"]
    assert logged["eval_cosine"] == pytest.approx(task.evaluate(model, "validation")["cosine"], abs=1e-5)


def test_embeddings_of_another_width_and_losses_unknown_are_refused(tmp_path, embedder):
    with pytest.raises(ConfigError, match="embedding_loss must be one of"):
        EmbeddingTrainer(AutoModel.from_pretrained(embedder), tiny.arguments(tmp_path), embedding_loss="l1")
    rows = [{"input_ids": torch.tensor([1, 2]), "labels": torch.zeros(3)}] * 8
    trainer = EmbeddingTrainer(AutoModel.from_pretrained(embedder), tiny.arguments(tmp_path), train_dataset=rows)
    with pytest.raises(DataError, match="width 16, those to learn 3"):
        trainer.train()


def test_pooling_without_a_mask_takes_all_tokens():
    states = torch.randn(2, 3, 4)
    outputs = type("Outputs", (), {"last_hidden_state": states})
    assert torch.equal(mean_pooled(outputs, None), states.mean(1))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.allclose(mean_pooled(outputs, mask)[0], states[0, :2].mean(0))


def test_an_empty_split_is_refused(tmp_path, embedder):
    empty = str(tmp_path / "empty.parquet")
    Dataset.from_dict({"text": []}, features=Features({"text": Value("string")})).to_parquet(empty)
    config = TaskConfig(type="sentence-embeddings", files={"train": empty, "test": empty}, embedding_model=embedder)
    with pytest.raises(DataError, match="empty"):
        build_task(config, embedder)
