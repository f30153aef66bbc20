"""Two gloo processes under torchrun agree with each other and with one process, each with a copy or a shard."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_process.py")
LANGUAGE = SCRIPT.with_name("two_process_distillation.py")
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(launcher, folder, *arguments, script=SCRIPT):
    done = subprocess.run([*launcher, script, folder, *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


WHATS = [
    "unstructured,magnitude",
    "unstructured,platon,regrow",
    "unstructured,movement",
    "2:4,taylor",
    "ffn,magnitude",
    "hidden,taylor",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and what two did, one run after another."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run(ALONE, one, "8", *WHATS)
    run(TORCHRUN, two, "4", *WHATS)
    return one, two


def results(one, two, modes=("", "")):
    """Of the process alone, and of both others."""
    files = one / f"rank0{modes[0]}.pt", two / f"rank0{modes[1]}.pt", two / f"rank1{modes[1]}.pt"
    return [torch.load(file) for file in files]


def check_logs(alone, first, *keys):
    for key in ("loss", "grad_norm", *keys):
        values = [[e[key] for e in r["logs"] if key in e] for r in (alone, first)]
        assert values[0]
        assert values[0] == pytest.approx(values[1], rel=1e-3), key


@pytest.mark.parametrize("what", WHATS)
def test_two_processes_agree_and_equal_one(folders, what):
    one, two = (folder / what for folder in folders)
    alone, first, second = results(one, two)
    assert first["masks"]
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert torch.equal(mask, alone["masks"][name])
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        assert torch.allclose(weight, alone["weights"][name], atol=1e-5), name
    check_logs(alone, first, "task_loss", "distillation_loss", "unlabeled_distillation_loss", "sparsity")
    assert (two / "checkpoint-6" / "pruning_state.safetensors").is_file()


@pytest.mark.parametrize("what", ["unstructured,platon,regrow", "unstructured,magnitude,frozen"])
def test_fsdp_shards_train_as_one_process_does_and_resume_bit_for_bit(tmp_path, what):
    """Where only what is pruned has gradients, those of zeroed weights would show in the norm."""
    tiny.needs_shards()
    run(ALONE, tmp_path / "one", "8", f"{what}/alone")
    run(TORCHRUN, tmp_path / "two", "4", f"{what}/fsdp")
    one, two = tmp_path / "one" / what, tmp_path / "two" / what
    alone, first, second = results(one, two, ("alone", "fsdp"))
    assert first["sharded"]
    assert first["masks"]
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert torch.equal(mask, alone["masks"][name]), name
    check_logs(alone, first, "sparsity")
    run(TORCHRUN, tmp_path / "two", "4", f"{what}/resume")
    saved = [(two / name / "model.safetensors").read_bytes() for name in ("finalfsdp", "finalresume")]
    assert saved[0] == saved[1]
    whole, again = (load_file(two / name / "model.safetensors") for name in ("finalfsdp", "compressed/model"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not list(two.glob(".*.whole"))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """What one process and what two learned from a teacher; shards in processes of their own."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run(ALONE, one, "8", "0,replicas", "0,cached", script=LANGUAGE)
    run(TORCHRUN, two, "4", "0,replicas", "3,replicas", "3,cached", script=LANGUAGE)
    if tiny.can_shard():
        run(TORCHRUN, two, "4", "0,fsdp", "3,fsdp", script=LANGUAGE)
    return one, two


@pytest.mark.parametrize(("chunk_size", "mode"), [("0", "replicas"), ("3", "replicas"), ("0", "fsdp"), ("3", "fsdp")])
def test_distillation_of_a_language_model_is_the_same_on_two_processes(distilled, chunk_size, mode):
    if mode == "fsdp":
        tiny.needs_shards()
    one, two = distilled
    alone, first, second = results(one / "0,replicas", two / f"{chunk_size},{mode}")
    assert first["chunked"] == (chunk_size == "3")
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        assert torch.allclose(weight, alone["weights"][name], atol=1e-5), name
    check_logs(alone, first, "task_loss", "distillation_loss", "relation_loss", "unlabeled_distillation_loss")


def test_processes_make_a_cache_together_and_learn_from_it_as_one_does(distilled):
    one, two = distilled
    alone, first, second = results(one / "0,cached", two / "3,cached")
    assert {p.name[-3:] for p in (two / "3,cached" / "cache").glob("part-*")} == {"000", "001"}
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        assert torch.allclose(weight, alone["weights"][name], atol=1e-5), name


def test_what_cannot_be_pruned_in_shards_is_refused(tmp_path):
    from types import SimpleNamespace

    from hf_compress.errors import UnsupportedError
    from hf_compress.pruning.callback import refuse_sharding

    def arguments(deepspeed=None, **plugin):
        return SimpleNamespace(deepspeed=deepspeed, fsdp=bool(plugin), fsdp_plugin_args=plugin)

    refuse_sharding(arguments())
    refuse_sharding(arguments(fsdp_version=2, state_dict_type="FULL_STATE_DICT"))
    for found, reason in (
        (arguments(deepspeed="zero3.json"), "DeepSpeed ZeRO keeps flattened copies"),
        (arguments(fsdp_version=1), "FSDP version 1 joins many weights"),
        (arguments(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT"), "FULL_STATE_DICT"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            refuse_sharding(found)


def test_distillation_under_zero3_is_refused_before_the_teacher_is_loaded(tmp_path, monkeypatch):
    from hf_compress import DistillationConfig, DistillationTrainer
    from hf_compress.errors import UnsupportedError

    monkeypatch.setattr("hf_compress.training.setup.is_zero3", lambda: True)
    with pytest.raises(UnsupportedError, match="ZeRO stage 2"):
        DistillationTrainer(
            tiny.bert(), tiny.arguments(tmp_path), distillation=DistillationConfig(), teacher="nowhere/at-all"
        )


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "scripts" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_configurations_for_accelerate_are_read_as_they_are_meant(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp2": "FSDP", "single_gpu": "NO"}
    assert config.distributed_type.value == kind.get(path.stem, "DEEPSPEED")
    assert config.num_processes >= 1
    assert (config.num_machines > 1) == (path.stem == "multi_node")
    assert config.fsdp_config.get("fsdp_version") == (2 if path.stem == "fsdp2" else None)
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(path.stem)
