"""What only a GPU can show; skipped without CUDA."""

import pytest
import tiny
import torch

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    OneShotConfig,
    PruningConfig,
    QuantizationConfig,
    measure,
    prune_oneshot,
    quantize,
    shrink,
)
from hf_compress.distillation.chunked import chunked_head_loss
from hf_compress.distillation.formula import TermWeights, cross_entropy_and_kl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

WIDE = {"hidden_size": 128, "intermediate_size": 256}


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
def test_quantized_on_cuda_loads_back_equal_and_close_to_its_source(tmp_path, make, scheme):
    model = make(**WIDE).eval().cuda()
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "small", QuantizationConfig(scheme, compute_dtype="bfloat16"))
    again = type(model).from_pretrained(tmp_path / "small", device_map={"": "cuda"}).eval()
    ids = torch.randint(0, 50, (2, 8), device="cuda")
    with torch.inference_mode():
        expected, found = model(input_ids=ids)[0].float(), again(input_ids=ids)[0].float()
    assert (expected - found).norm() / expected.norm() < 0.5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("structure", ["unstructured", "ffn", "hidden", "layers"])
def test_training_in_16_bit_ends_at_the_exact_sparsity(tmp_path, precision, structure):
    arguments = tiny.arguments(tmp_path, use_cpu=False, **{precision: True})
    config = CompressionConfig(DistillationConfig(), PruningConfig(0.5, structure, frequency=1))
    trainer = CompressionTrainer(
        tiny.bert(), arguments, compression=config, teacher=tiny.bert(1), train_dataset=tiny.sentences()
    )
    trainer.train()
    trainer.save_model()
    assert trainer.pruner.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_records_name_the_gpu_and_its_memory(tmp_path):
    tiny.bert(**WIDE).save_pretrained(tmp_path / "model")
    (record,) = measure(tmp_path / "model", batch_sizes=(1,), length=8, seconds=0.1)
    assert record.get("latency").conditions["device"] == "cuda"
    assert record.get("peak_memory").value > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("criterion", ["platon", "movement", "taylor"])
def test_gradient_criteria_in_16_bit_regrow_and_end_exactly(tmp_path, precision, criterion):
    arguments = tiny.arguments(tmp_path, use_cpu=False, **{precision: True, "max_grad_norm": 0.0})
    config = CompressionConfig(
        pruning=PruningConfig(0.6, criterion=criterion, regrow=True, scope="global", frequency=1)
    )
    trainer = CompressionTrainer(tiny.bert(), arguments, compression=config, train_dataset=tiny.sentences())
    trainer.train()
    trainer.pruner.check()
    assert trainer.pruner.sparsity == pytest.approx(0.6, abs=1e-3)


def test_selection_on_the_gpu_equals_that_on_the_cpu():
    from hf_compress.pruning.select import keep_largest

    torch.manual_seed(0)
    scores = [torch.randn(1000, 300).round(decimals=2), torch.randn(500_001)]
    for prune in (1, 400_000, 800_000):
        here = keep_largest(scores, prune)
        there = keep_largest([s.cuda() for s in scores], prune)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


def test_fsdp_on_one_device_prunes_as_without_it(tmp_path):
    config = PruningConfig(0.6, criterion="platon", regrow=True, frequency=2)
    found = []
    for fsdp in ({}, {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}):
        arguments = tiny.arguments(tmp_path, use_cpu=False, optim="sgd", learning_rate=0.1, **fsdp)
        compression = CompressionConfig(pruning=config)
        trainer = CompressionTrainer(tiny.bert(), arguments, compression=compression, train_dataset=tiny.sentences())
        trainer.train()
        found.append(trainer.pruner.masks)
    assert all(torch.equal(found[0][n], m) for n, m in found[1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_head_equals_the_whole_one_in_a_fraction_of_its_memory(dtype):
    rows, width, classes = 1024, 256, 50257
    hidden, theirs = (torch.randn(rows, width, device="cuda", dtype=dtype) for _ in range(2))
    weight, other = (torch.randn(classes, width, device="cuda", dtype=dtype) / 16 for _ in range(2))
    labels = torch.randint(classes, (rows,), device="cuda")

    def one(logits, which):
        teachers = [(1.0, (theirs[which] @ other.T).float())]
        return cross_entropy_and_kl(logits, labels[which], teachers, TermWeights(0.5, 0.5))

    def run(loss_of):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = loss_of(*leaves)
        loss.backward()
        return loss.detach(), [leaf.grad.float() for leaf in leaves], torch.cuda.max_memory_allocated() - before

    def whole(h, w):
        z = (h @ w.T).float()
        p = (theirs @ other.T).float().log_softmax(-1)
        kl = (p.exp() * (p - z.log_softmax(-1))).sum()
        return 0.5 * torch.nn.functional.cross_entropy(z, labels, reduction="sum") + 0.5 * kl

    expected, slopes, memory = run(whole)
    found, ours, less = run(lambda h, w: chunked_head_loss(h, w, None, one, 64)[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    for a, b in zip(ours, slopes, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()
    assert less < memory / 3


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_teacher_in_few_bits_teaches_on_the_gpu(tmp_path, precision):
    tiny.llama(1, **WIDE).save_pretrained(tmp_path / "teacher")
    arguments = tiny.arguments(tmp_path, use_cpu=False, bf16=True)
    config = DistillationConfig(teacher_precision=precision, teacher_device_map="cuda", chunk_size=8)
    trainer = CompressionTrainer(
        tiny.llama(),
        arguments,
        compression=CompressionConfig(config),
        teacher=tmp_path / "teacher",
        train_dataset=tiny.texts(),
    )
    trainer.train()
    losses = [entry["distillation_loss"] for entry in trainer.state.log_history if "distillation_loss" in entry]
    assert all(torch.isfinite(torch.tensor(losses)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_chunked_training_in_16_bit_follows_whole_logits(tmp_path, precision):
    found = []
    for size in (0, 4):
        arguments = tiny.arguments(tmp_path, use_cpu=False, **{precision: True})
        config = CompressionConfig(DistillationConfig(chunk_size=size))
        trainer = CompressionTrainer(
            tiny.llama(), arguments, compression=config, teacher=tiny.llama(1), train_dataset=tiny.texts()
        )
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize("keep", [{"ffn": 0.5}, {"ffn": 0.5, "heads": 1, "layers": 1}])
def test_units_go_without_training_on_the_gpu_as_on_the_cpu(keep):
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 50, (8, 12), generator=generator)} for _ in range(4)]
    config = OneShotConfig(keep=keep)
    made = [prune_oneshot(tiny.llama(num_key_value_heads=2).to(device), config, batches) for device in ("cpu", "cuda")]
    assert next(made[1].parameters()).is_cuda
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), rtol=1e-3, atol=1e-4)


def test_the_width_is_cut_on_the_gpu():
    model = tiny.bert(**WIDE).cuda().half()
    shrunk = shrink(model, hidden=64)
    assert next(shrunk.parameters()).dtype == torch.float16
    assert next(shrunk.parameters()).is_cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_go_without_training_on_the_gpu_as_on_the_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 50, (8, 12), generator=generator)} for _ in range(4)]
    made = [tiny.llama().to(device, dtype) for device in ("cpu", "cuda")]
    for model in made:
        prune_oneshot(model, OneShotConfig(structure="2:4"), batches)
    same, total = 0, 0
    for a, b in zip(made[0].model.layers.parameters(), made[1].model.layers.parameters(), strict=True):
        same += int(((a == 0) == (b.cpu() == 0)).sum())
        total += a.numel()
    # Rounding may choose otherwise among nearly equal weights.
    assert same / total > (0.999 if dtype == torch.float32 else 0.98)


def test_a_folder_is_pruned_on_the_gpu_block_by_block(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 50, (8, 12), generator=generator)} for _ in range(4)]
    model = tiny.llama()
    model.save_pretrained(tmp_path / "dense")
    prune_oneshot(tmp_path / "dense", OneShotConfig(sparsity=0.5), batches, tmp_path / "sparse")
    expected = prune_oneshot(model.cuda(), OneShotConfig(sparsity=0.5), batches)
    found = type(model).from_pretrained(tmp_path / "sparse")
    assert all(torch.allclose(a, b.cpu()) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["torchao-int8", "torchao-int8-dynamic", "torchao-int4"])
def test_torchao_on_cuda_loads_back_equal_and_close_to_its_source(tmp_path, scheme):
    pytest.importorskip("torchao")
    model = tiny.bert(**WIDE).eval().cuda()
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "small", QuantizationConfig(scheme))
    again = type(model).from_pretrained(tmp_path / "small", device_map={"": "cuda"}).eval()
    ids = torch.randint(0, 50, (2, 8), device="cuda")
    with torch.inference_mode():
        expected, found = model(input_ids=ids)[0].float(), again(input_ids=ids)[0].float()
    assert (expected - found).norm() / expected.norm() < 0.5


@pytest.mark.parametrize("scheme", ["torchao-int4", "int8"])
def test_training_with_rounded_weights_on_cuda_gives_what_the_folder_gives(tmp_path, scheme):
    model = tiny.bert(**WIDE)
    config = CompressionConfig(quantization=QuantizationConfig(scheme, aware=True, ranges="learned"))
    arguments = tiny.arguments(tmp_path / "run", use_cpu=False)
    trainer = CompressionTrainer(model, arguments, compression=config, train_dataset=tiny.sentences())
    trainer.train()
    ids = torch.randint(0, 50, (4, 8), device="cuda")
    folders = trainer.save_compressed(tmp_path / "out")
    again = type(model).from_pretrained(folders["quantized"], device_map={"": "cuda"}).eval()
    with torch.inference_mode():
        expected, found = model.eval()(input_ids=ids)[0].float(), again(input_ids=ids)[0].float()
    assert (expected - found).norm() / expected.norm() < 0.05
