"""A cached teacher against the teacher itself; draws against the distribution; misuse."""

import json
import shutil

import pytest
import tiny
import torch
from transformers import BertForQuestionAnswering, default_data_collator

from hf_compress import CacheConfig, DistillationConfig, cache_teacher
from hf_compress.distillation.cache_file import CacheWriter
from hf_compress.distillation.ensemble import make_objective
from hf_compress.distillation.formula import TermWeights, cross_entropy_and_kl
from hf_compress.distillation.losses import forward_kl
from hf_compress.distillation.sparse import sample_tail, sparse_divergence
from hf_compress.errors import CheckpointError, ConfigError, DataError, TeacherError


def question_answering(seed):
    torch.manual_seed(seed)
    return BertForQuestionAnswering(tiny.bert(seed).config)


def padded(rows):
    """Rows of different lengths, and the collator that pads them on the right."""
    cut = [{k: v[: 3 + i % 6] if v.dim() else v for k, v in row.items()} for i, row in enumerate(rows)]

    def collate(rows):
        length = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            k: torch.stack([torch.nn.functional.pad(r[k], (0, length - len(r[k])), value=fill[k]) for r in rows])
            if rows[0][k].dim()
            else torch.stack([r[k] for r in rows])
            for k in rows[0]
        }

    return cut, collate


TASKS = {
    "text": (tiny.bert, tiny.sentences, {}),
    "tokens": (tiny.bert_tokens, tiny.tagged, {}),
    "spans": (question_answering, tiny.sentences, {}),
    "causal": (tiny.llama, tiny.texts, {}),
    "seq2seq": (tiny.t5, tiny.texts, {}),
    "images": (tiny.vit, tiny.images, {}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_full_cache_says_what_the_teacher_says_in_any_batch(tmp_path, task):
    make, data, _ = TASKS[task]
    rows, collate = padded(data(20)) if task != "images" else (data(20), default_data_collator)
    teacher, student = make(1), make(0)
    cache_teacher(teacher, rows, tmp_path / "c", CacheConfig(batch_size=3), collator=collate, progress=False)
    online = make_objective(DistillationConfig(divergence="jsd"), teacher, student)
    cached = make_objective(DistillationConfig(divergence="jsd", cache=str(tmp_path / "c")), None, student)
    for order in (range(20), [7, 3, 19], [0]):
        batch = collate([rows[i] for i in order])
        outputs = student(**{k: v for k, v in batch.items() if task != "spans" or k != "labels"})
        found, expected = (o(outputs, batch)["distillation_loss"] for o in (cached, online))
        torch.testing.assert_close(found.total, expected.total, rtol=1e-4, atol=1e-6)
        assert int(found.count) == int(expected.count)


def test_as_many_probabilities_as_there_are_tokens_are_the_whole_distribution(tmp_path):
    teacher, student = tiny.llama(1), tiny.llama(0)
    for parameter in teacher.parameters():
        parameter.data *= 3  # sharper
    rows, collate = padded(tiny.texts(20))
    config = CacheConfig(batch_size=3, top_k=50, temperature=2.0)
    cache_teacher(teacher, rows, tmp_path / "c", config, collator=collate, progress=False)
    batch = collate(rows)
    online = make_objective(DistillationConfig(), teacher, student)
    cached = make_objective(DistillationConfig(cache=str(tmp_path / "c")), None, student)
    gradients = []
    for objective in (online, cached):
        term = objective(student(**batch), batch)["distillation_loss"]
        gradients.append(torch.autograd.grad(term.total, list(student.parameters()), allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        assert a is None or (a - b).norm() < 5e-3 * a.norm()  # 16 bit on disk


def zipf(rows=4, classes=300):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, classes, generator=generator)
    return -1.2 * torch.log(torch.arange(1.0, classes + 1)) + noise, torch.randn(rows, classes, generator=generator)


def test_the_expected_gradient_of_draws_is_the_exact_one_and_that_of_the_largest_alone_is_not():
    teacher, student = zipf()
    student.requires_grad_()
    (exact,) = torch.autograd.grad(forward_kl(student, teacher)[0], student)

    def bias(draws, repeats):
        generator = torch.Generator().manual_seed(1)
        total = 0
        for _ in range(repeats):
            target = sample_tail(teacher, 8, draws, generator)
            total = total + torch.autograd.grad(sparse_divergence(student, target), student)[0]
        return float((total / repeats - exact).norm() / exact.norm())

    assert bias(16, 4000) < 0.01
    assert bias(0, 1) > 0.1


def test_the_estimated_value_is_right_in_expectation():
    teacher, student = zipf()
    generator = torch.Generator().manual_seed(1)
    values = [sparse_divergence(student, sample_tail(teacher, 8, 16, generator)) for _ in range(2000)]
    expected = forward_kl(student, teacher)[0]
    torch.testing.assert_close(torch.stack(values).mean(), expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sparse_rows_have_the_same_gradient_by_formula_and_by_autograd(temperature):
    teacher, student = zipf()
    target = sample_tail(teacher / temperature, 8, 16, torch.Generator().manual_seed(0))
    leaf = student.clone().requires_grad_()
    value = sparse_divergence(leaf, target, temperature)
    (slope,) = torch.autograd.grad(value, leaf)
    loss, gradient, _ = cross_entropy_and_kl(student, None, [(1.0, target)], TermWeights(0.0, 1.0, temperature))
    torch.testing.assert_close(loss, value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


def test_a_certain_teacher_leaves_no_tail():
    logits = torch.full((2, 10), -torch.inf)
    logits[:, 3] = 0.0
    target = sample_tail(logits, 1, 4)
    torch.testing.assert_close(target.mass, torch.tensor([[1.0, 0, 0, 0, 0]] * 2))
    assert torch.isfinite(sparse_divergence(torch.randn(2, 10), target))


def test_an_interrupted_cache_goes_on_and_is_the_same(tmp_path):
    teacher, rows = tiny.llama(1), tiny.texts(200)
    options = {"config": CacheConfig(batch_size=2, top_k=4), "progress": False}
    cache_teacher(teacher, rows, tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    class Breaking(list):
        def __getitem__(self, index):
            if index == 150:
                raise Stop
            return super().__getitem__(index)

    with pytest.raises(Stop):
        cache_teacher(teacher, Breaking(rows), tmp_path / "c", **options)
    objective = DistillationConfig(cache=str(tmp_path / "c"), temperature=1.0)
    with pytest.raises(CheckpointError, match="not complete"):
        make_objective(objective, None, tiny.llama(0))
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("part-*")}
    assert kept
    cache_teacher(teacher, rows, tmp_path / "c", **options)
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("part-*")}.items()
    batch, student = default_data_collator(rows), tiny.llama(0)
    totals = [
        make_objective(DistillationConfig(cache=str(tmp_path / name), temperature=1.0), None, student)(
            student(**batch), batch
        )["distillation_loss"].total
        for name in ("whole", "c")
    ]
    torch.testing.assert_close(*totals, rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def llama_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "c"
    return cache_teacher(tiny.llama(1), tiny.texts(8), folder, CacheConfig(top_k=4, temperature=2.0), progress=False)


def test_misuse_is_refused(tmp_path, llama_cache):
    student = tiny.llama(0)
    for config, error, message in [
        ({"temperature": 1.0}, ConfigError, "made at 2"),
        ({"divergence": "jsd"}, ConfigError, "needs all probabilities"),
        ({"hidden_weight": 1.0}, ConfigError, "needs the teacher itself"),
        ({"cache": str(tmp_path)}, CheckpointError, "holds no teacher cache"),
    ]:
        with pytest.raises(error, match=message):
            make_objective(DistillationConfig(**{"cache": str(llama_cache), **config}), None, student)
    config = DistillationConfig(cache=str(llama_cache))
    for other, error, message in [
        (tiny.llama(0, vocab_size=60), TeacherError, "more than padding"),
        (tiny.bert(0), TeacherError, "student's are for rows"),
    ]:
        with pytest.raises(error, match=message):
            make_objective(config, None, other)
    with pytest.raises(CheckpointError, match="another teacher"):
        make_objective(config, tiny.llama(3), student)
    make_objective(config, tiny.llama(1), student)
    batch = default_data_collator(tiny.texts(8, seed=5))
    with pytest.raises(CheckpointError, match="8 of 8 examples"):
        make_objective(config, None, student)(student(**batch), batch)


def test_other_settings_and_other_folders_are_refused(tmp_path, llama_cache):
    rows, teacher = tiny.texts(8), tiny.llama(1)
    with pytest.raises(CheckpointError, match="another temperature"):
        cache_teacher(teacher, rows, llama_cache, CacheConfig(top_k=4), progress=False)
    with pytest.raises(CheckpointError, match="another teacher"):
        cache_teacher(tiny.llama(3), rows, llama_cache, CacheConfig(top_k=4, temperature=2.0), progress=False)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        cache_teacher(teacher, rows, tmp_path, progress=False)
    copy = shutil.copytree(llama_cache, tmp_path / "copy")
    settings = json.loads((copy / "teacher_cache.json").read_text())
    (copy / "teacher_cache.json").write_text(json.dumps({**settings, "format": 99}))
    with pytest.raises(CheckpointError, match="another version"):
        make_objective(DistillationConfig(cache=str(copy)), None, tiny.llama(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"top_k": -1}, ConfigError, "top_k"),
        ({"tail_draws": -1}, ConfigError, "tail_draws"),
        ({"temperature": 0.0}, ConfigError, "temperature"),
        ({"dataset": []}, DataError, "empty"),
        ({"dataset": iter([])}, DataError, "stream"),
        ({"dataset": [{"text": "a"}]}, DataError, r"columns \['text'\]"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, change, error, message):
    dataset = change.pop("dataset", tiny.texts(4))
    with pytest.raises(error, match=message):
        cache_teacher(tiny.llama(1), dataset, tmp_path / "c", CacheConfig(**change), progress=False)
    assert not (tmp_path / "c").exists()


def test_tokenizers_are_compared(tmp_path):
    class Tokenizer:
        def __init__(self, tokens):
            self.tokens = {token: i for i, token in enumerate(tokens)}

        def get_vocab(self):
            return self.tokens

    rows, teacher = tiny.sentences(4), tiny.bert(1)
    cache_teacher(
        teacher,
        rows,
        tmp_path / "c",
        collator=default_data_collator,
        processing_class=Tokenizer("abc"),
        progress=False,
    )
    config = DistillationConfig(cache=str(tmp_path / "c"))
    make_objective(config, None, tiny.bert(0), processing_class=Tokenizer("abc"))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        make_objective(config, None, tiny.bert(0), processing_class=Tokenizer("acb"))


def test_a_process_that_comes_later_leaves_what_the_first_one_is_writing(tmp_path):
    CacheWriter(tmp_path / "c", {"rows": 1})
    unfinished = tmp_path / "c" / "part-000000-000.tmp"
    unfinished.mkdir()
    CacheWriter(tmp_path / "c", {"rows": 1}, is_first=False)
    assert unfinished.is_dir()
    CacheWriter(tmp_path / "c", {"rows": 1})
    assert not unfinished.exists()
