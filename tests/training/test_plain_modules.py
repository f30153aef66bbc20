"""Modules that transformers does not know: what works with them, and what is refused with what to do."""

import copy
import json

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer
from transformers.utils import ModelOutput

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    DistillationTrainer,
    OneShotConfig,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    QuantizationConfig,
    cache_teacher,
    export,
    inspect_model,
    make_student,
    measure,
    prune_oneshot,
    quantize,
    save_per_layer,
    shrink,
)
from hf_compress.errors import (
    ArchitectureError,
    ConfigError,
    HfCompressError,
    QuantizationError,
    SparsityError,
    TeacherError,
    UnsupportedError,
)
from hf_compress.measurement.exported import ExportedModule


class Network(nn.Module):
    """A small convolutional network; `form` is what it returns."""

    def __init__(self, width=8, form=dict, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.form = form
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, width, 3, padding=1)
        self.hidden = nn.Linear(4 * width, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, pixel_values, labels=None):
        found = F.adaptive_avg_pool2d(self.body(self.norm(self.stem(pixel_values)).relu()), 2).relu()
        logits = self.head(self.hidden(found.flatten(1)).relu())
        parts = {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}
        return tuple(parts.values()) if self.form is tuple else self.form(parts)


class Branching(Network):
    """Asks a value, which no program can be traced through."""

    def forward(self, pixel_values):
        return super().forward(pixel_values if pixel_values.sum() > 0 else -pixel_values)


class Recommender(nn.Module):
    """Users and items in, one number a row out."""

    def __init__(self, width, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.user, self.item, self.head = nn.Embedding(9, width), nn.Embedding(7, width), nn.Linear(2 * width, 1)

    def forward(self, user, item, labels=None):
        logits = self.head(torch.cat([self.user(user), self.item(item)], -1))[:, 0]
        loss = {} if labels is None else {"loss": F.binary_cross_entropy_with_logits(logits, labels)}
        return {**loss, "logits": logits}


class OwnConfig(PretrainedConfig):
    model_type = "own-network"

    def __init__(self, channels=(4, 8), **rest):
        super().__init__(**rest)
        self.channels = list(channels)


class Own(PreTrainedModel):
    """The network once more, with a config that says its sizes."""

    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        first, second = config.channels
        self.stem, self.body = nn.Conv2d(3, first, 3, padding=1), nn.Conv2d(first, second, 3, padding=1)
        self.head = nn.Linear(second, 3)
        self.post_init()

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.body(self.stem(pixel_values).relu()).relu().mean((2, 3)))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


PIXELS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCH = {"pixel_values": PIXELS}


def groups(weight, structure):
    """Return the weights (groups, weights) that live or die together."""
    blocks = weight.reshape(len(weight) // 4, 4, weight.shape[1] // 4, 4, -1)
    return {
        "unstructured": weight.reshape(-1, 1),
        "block:4x4": blocks.permute(0, 2, 4, 1, 3).reshape(-1, 16),
        "rows": weight.flatten(1),
        "columns": weight.transpose(0, 1).flatten(1),
    }[structure]


@pytest.mark.parametrize("structure", ["unstructured", "block:4x4", "rows", "columns"])
def test_half_of_each_weight_is_gone_in_the_saved_file(tmp_path, structure):
    config = PruningConfig(0.5, structure, scope="uniform", include=["body.weight", "hidden.weight"])
    trainer = PruningTrainer(Network(), tiny.arguments(tmp_path), pruning=config, train_dataset=tiny.images())
    trainer.train()
    folder = trainer.save_compressed(tmp_path / "out")["model"]
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
    saved = load_file(folder / "model.safetensors")
    for name in ("body.weight", "hidden.weight"):
        alive = (groups(saved[name], structure) != 0).any(1)
        assert int(alive.sum()) * 2 == len(alive)
        assert bool((groups(saved[name], structure)[alive] != 0).all())
    again = Network(seed=1)
    load_model(again, folder / "model.safetensors")
    assert torch.equal(again.eval()(**BATCH)["logits"], trainer.model.eval()(**BATCH)["logits"])


def test_two_of_four_inputs_stay(tmp_path):
    config = PruningConfig(structure="2:4", exclude=["stem"])
    trainer = PruningTrainer(Network(), tiny.arguments(tmp_path), pruning=config, train_dataset=tiny.images())
    trainer.train()
    trainer.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    assert bool(((saved["hidden.weight"].reshape(16, -1, 4) != 0).sum(-1) == 2).all())
    assert bool(((saved["body.weight"].reshape(8, 1, 4, 9) != 0).sum(2) == 2).all())


def test_a_stock_trainer_prunes_by_the_callback(tmp_path):
    callback = PruningCallback(PruningConfig(sparsity=0.75, scope="uniform"))
    trainer = Trainer(Network(), tiny.arguments(tmp_path), train_dataset=tiny.images(), callbacks=[callback])
    trainer.train()
    assert int((trainer.model.hidden.weight == 0).sum()) == 16 * 32 * 3 // 4
    assert not bool((trainer.model.head.weight == 0).any())


def test_saved_zeros_are_asserted(tmp_path):
    trainer = PruningTrainer(Network(), tiny.arguments(tmp_path), train_dataset=tiny.images())
    trainer.train()
    with torch.no_grad():
        trainer.model.hidden.weight.add_(1)
    with pytest.raises(SparsityError, match=r"hidden\.weight"):
        trainer.save_model()


@pytest.mark.parametrize("form", [dict, ModelOutput, tuple])
def test_logits_are_distilled_by_the_textbook_formula(tmp_path, form):
    student, teacher = Network(8, form), Network(16, form, seed=1)
    config = DistillationConfig(temperature=3.0, task_weight=0.25, logit_weight=0.75)
    rows = tiny.images(8)
    trainer = DistillationTrainer(
        student, tiny.arguments(tmp_path), distillation=config, teacher=teacher, train_dataset=rows
    )
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    batches, _ = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    found = trainer.compute_loss(student.train(), batches[0])
    ours, theirs = (as_tuple(model(**batch))[1] for model in (student, teacher.eval()))
    task = F.cross_entropy(ours, batch["labels"])
    soft = F.kl_div((ours / 3).log_softmax(-1), (theirs / 3).softmax(-1), reduction="batchmean")
    assert found.item() == pytest.approx((0.25 * task + 0.75 * 9 * soft).item(), rel=1e-5)


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else tuple(outputs.values())


def ratings(count=32):
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randint(9, (count,), generator=generator), torch.randint(7, (count,), generator=generator)
    return [{"user": u, "item": i, "labels": ((u + i) % 2).float()} for u, i in zip(users, items, strict=True)]


def of_chances(ours, theirs):
    p, q = torch.sigmoid(theirs / 2), torch.sigmoid(ours / 2)
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * 4


# For numbers, such as ratings; the temperature cancels.
def of_numbers(ours, theirs):
    return (ours - theirs).square().mean() / 8


@pytest.mark.parametrize(("divergence", "oracle"), [("forward_kl", of_chances), ("mse", of_numbers)])
def test_one_number_a_row_is_distilled_as_a_probability_or_by_squares(tmp_path, divergence, oracle):
    student, teacher, rows = Recommender(2), Recommender(4, seed=1), ratings(8)
    config = DistillationConfig(temperature=2.0, task_weight=0.0, logit_weight=1.0, divergence=divergence)
    trainer = DistillationTrainer(
        student, tiny.arguments(tmp_path), distillation=config, teacher=teacher, train_dataset=rows
    )
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    batches, _ = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    found = trainer.compute_loss(student.train(), batches[0])
    wanted = oracle(student(**batch)["logits"], teacher(**batch)["logits"])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    def run(folder, resume=None):
        trainer = CompressionTrainer(
            Network(), tiny.arguments(folder, save_strategy="steps", save_steps=5),
            compression=CompressionConfig(DistillationConfig(), PruningConfig(sparsity=0.5, criterion="movement")),
            teacher=Network(16, seed=1), train_dataset=tiny.images(),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole, resumed = run(tmp_path / "a"), run(tmp_path / "b", str(tmp_path / "a/checkpoint-5"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_modules_and_their_8_bit_programs_are_measured_side_by_side(tmp_path):
    pytest.importorskip("onnxruntime")
    model = Network().train()
    model.norm.eval()
    with torch.no_grad():
        model.hidden.weight[:8] = 0
    folder = export(
        model, "onnx", tmp_path / "int8", quantization="static", batches=[BATCH, {"pixel_values": PIXELS[:4]}]
    )
    assert not (folder / "config.json").exists()
    records = measure(
        {"module": model, "int8": folder}, inputs=BATCH, batch_sizes=[1, 7], rounds=1, seconds=0.01,
        evaluate=lambda m: {"accuracy": float(m.training)},
    )  # fmt: skip
    before, after = records
    counts = {m.name: m.value for m in before.measurements if not m.conditions}
    wanted = sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert (counts["parameters"], counts["nonzeros"]) == (wanted, wanted - zeros)
    model_file = CompressionTrainer(model, tiny.arguments(tmp_path)).save_compressed(tmp_path / "saved")["model"]
    assert counts["bytes_on_disk"] == (model_file / "model.safetensors").stat().st_size
    assert before.method["parts"]["layers"]["hidden.weight"] == {"shape": [16, 32], "nonzeros": 256}
    # Evaluated in evaluation mode, and left as they were.
    assert counts["accuracy"] == 0
    assert (model.training, model.norm.training) == (True, False)
    assert {m.conditions["batch_size"] for m in before.find("latency")} == {1, 7}
    # A fresh process knows the program, and not the class of the module.
    assert [bool(r.find("peak_memory") and r.find("load_time")) for r in records] == [False, True]
    assert (after.get("parameters").value, after.method["export"]["quantization"]) == (wanted, "static")
    json.dumps([r.to_dict() for r in records])


@pytest.mark.parametrize(
    ("format", "package", "quantization"),
    [("onnx", "onnxruntime", None), ("onnx", "onnxruntime", "dynamic"), ("openvino", "nncf", "static")],
)
def test_a_module_is_exported_for_any_number_of_rows(tmp_path, format, package, quantization):
    pytest.importorskip(package)
    model = Network().eval()
    batches = [BATCH, {"pixel_values": -PIXELS[:3]}]
    folder = export(model, format, tmp_path / "out", quantization=quantization, batches=batches)
    found = ExportedModule(folder, "cpu", is_exact=True)(pixel_values=PIXELS[:5])["logits"]
    wanted = model(pixel_values=PIXELS[:5])["logits"]
    distance = float((found - wanted).norm() / wanted.norm())
    assert distance < 1e-4 if quantization is None else 0 < distance < 0.2


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_what_an_exporter_fails_on_is_refused_with_its_words(tmp_path, format, package):
    pytest.importorskip(package)
    with pytest.raises(UnsupportedError, match="cannot take Branching .*branches on values"):
        export(Branching().eval(), format, tmp_path / "out", batches=[BATCH])
    assert not list(tmp_path.iterdir())


def test_a_module_trained_with_rounded_weights_is_exported_in_their_codes(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    aware = CompressionConfig(quantization=QuantizationConfig("int8", aware=True))
    trainer = CompressionTrainer(Network(), tiny.arguments(tmp_path), compression=aware, train_dataset=tiny.images())
    trainer.train()
    assert list(trainer.save_compressed(tmp_path / "saved")) == ["model"]
    export(trainer.model, "onnx", tmp_path / "out", batches=[BATCH, {"pixel_values": PIXELS[:3]}])
    stored = onnx.load(tmp_path / "out/model.onnx").graph.initializer
    # The head, which is the last layer, stays as it is.
    assert [sorted(t.dims) for t in stored if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1] == [[16, 32]]


def test_weights_are_pruned_without_training():
    model, dense = Network().eval(), Network().eval()
    prune_oneshot(model, OneShotConfig(sparsity=0.5), [BATCH])
    assert float((model.hidden.weight == 0).float().mean()) == 0.5
    assert not torch.equal(model(**BATCH)["logits"], dense(**BATCH)["logits"])


def train(tmp_path, **compression):
    config, rest = CompressionConfig(**compression), {}
    if config.distillation is not None:
        rest["teacher"] = Network(16)
    return CompressionTrainer(
        Network(), tiny.arguments(tmp_path), compression=config, train_dataset=tiny.images(), **rest
    )


REFUSALS = {
    "units": (lambda p: train(p, pruning=PruningConfig(structure="ffn")), ArchitectureError, "PreTrainedModel"),
    "heads": (lambda p: train(p, pruning=PruningConfig(structure="heads")), ArchitectureError, "PreTrainedModel"),
    "filters": (lambda p: train(p, pruning=PruningConfig(structure="filters")), ArchitectureError, "PreTrainedModel"),
    "hidden": (lambda p: train(p, pruning=PruningConfig(structure="hidden")), ArchitectureError, "PreTrainedModel"),
    "layers": (lambda p: train(p, pruning=PruningConfig(structure="layers")), ArchitectureError, "PreTrainedModel"),
    "inner": (lambda p: train(p, distillation=DistillationConfig(hidden_weight=1.0)), TeacherError, "logits only"),
    "relations": (lambda p: train(p, distillation=DistillationConfig(relation_weight=1.0)), TeacherError, "logits"),
    "chunks": (lambda p: train(p, distillation=DistillationConfig(chunk_size=8)), ConfigError, "set it to 0"),
    "own text": (lambda p: train(p, distillation=DistillationConfig(on_policy_fraction=0.5)), ConfigError, "generate"),
    "quantize later": (lambda p: train(p, quantization=QuantizationConfig("int8")), UnsupportedError, "export"),
    "card": (lambda p: train(p, pruning=PruningConfig()).create_model_card(), UnsupportedError, "PreTrainedModel"),
    "push": (lambda p: train(p, pruning=PruningConfig()).push_to_hub(), UnsupportedError, "PreTrainedModel"),
    "shrink": (lambda p: shrink(Network(), filters=0.5), ArchitectureError, "PreTrainedModel"),
    "inspect": (lambda p: inspect_model(Network()), ArchitectureError, "PreTrainedModel"),
    "student": (lambda p: make_student(Network(), layers=1), ArchitectureError, "PreTrainedModel"),
    "per layer": (lambda p: save_per_layer(Network(), p), ArchitectureError, "PreTrainedModel"),
    "once": (lambda p: prune_oneshot(Network(), OneShotConfig(keep={"ffn": 0.5}), [BATCH]), ArchitectureError, "Pre"),
    "quantize": (lambda p: quantize(Network(), p / "q"), QuantizationError, "export"),
    "export": (lambda p: export(Network(), "onnx", p / "e"), UnsupportedError, "batches="),
    "own": (lambda p: export(Network(form=ModelOutput), "onnx", p / "e", batches=[BATCH]), UnsupportedError, "dict"),
    "measure": (lambda p: measure({"a": Network()}), UnsupportedError, "inputs="),
    "no name": (lambda p: measure(Network()), ConfigError, "needs a name"),
    "no batch": (lambda p: measure({"a": Network()}, inputs={"pixel_values": 1}), ConfigError, "mapping of names"),
    "cache": (lambda p: cache_teacher(Network(), tiny.images(), p / "c"), TeacherError, "as teacher"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_needs_a_config_is_refused_with_what_to_do(request, tmp_path, call, error, says):
    if request.node.callspec.id in ("export", "own"):
        tiny.needs_onnx()
    with pytest.raises(error, match=says):
        call(tmp_path)
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.onnx")]


@pytest.mark.parametrize("use", ["measure", "quantize", "export", "teacher", "inspect"])
def test_a_folder_of_bare_weights_is_refused_as_no_model(tmp_path, use):
    folder = CompressionTrainer(Network(), tiny.arguments(tmp_path)).save_compressed(tmp_path / "out")["model"]
    uses = {
        "measure": lambda: measure(folder),
        "quantize": lambda: quantize(folder, tmp_path / "q"),
        "export": lambda: export(folder, "onnx", tmp_path / "e"),
        "teacher": lambda: DistillationTrainer(Network(), tiny.arguments(tmp_path), teacher=str(folder)),
        "inspect": lambda: inspect_model(str(folder)),
    }
    if use == "export":
        tiny.needs_onnx()
    with pytest.raises(
        HfCompressError, match="no config.json|no model of transformers|id or folder of a transformers"
    ):
        uses[use]()


def test_a_class_of_your_own_with_a_config_loses_whole_filters(tmp_path):
    torch.manual_seed(0)
    pruning = CompressionConfig(pruning=PruningConfig(sparsity=0.5, structure="filters"))
    trainer = CompressionTrainer(
        Own(OwnConfig()), tiny.arguments(tmp_path), compression=pruning, train_dataset=tiny.images()
    )
    trainer.train()
    masked = copy.deepcopy(trainer.model).eval()
    smaller = Own.from_pretrained(trainer.save_compressed(tmp_path / "out")["model"]).eval()
    assert smaller.config.channels == [2, 4]
    assert smaller.body.weight.shape == (4, 2, 3, 3)
    torch.testing.assert_close(smaller(**BATCH)["logits"], masked(**BATCH)["logits"])
    record = measure({"own": smaller}, inputs=BATCH, rounds=1, seconds=0.01)[0]
    assert record.get("parameters").value == smaller.num_parameters()


def test_the_program_of_a_class_of_your_own_needs_none_of_its_code(tmp_path):
    pytest.importorskip("onnxruntime")
    folder = export(Own(OwnConfig()).eval(), "onnx", tmp_path / "out", batches=[BATCH])
    # A config of an unknown type could not be read; a measurement in a process of its own is above.
    assert not (folder / "config.json").exists()
    assert ExportedModule(folder, "cpu")(**BATCH)["logits"].shape == (6, 3)
