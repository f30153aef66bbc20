"""Runs of every kind, and a server that forks one for each request, so that a run costs no imports: python runs.py.

A request is a line of JSON: run, folder, and how the run is ended, if at all:
  after, signal: seconds of processor time, which other load does not change, until it gets the signal;
  at, call, signal: module:name of a function that sends the signal to its own process at that call of it.
The answer: status (minus the signal that ended it), seconds of processor time, text that it wrote.
"""

import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import oneshot_runs
import tiny
import tiny_recipe
import torch

from hf_compress import (
    CacheConfig,
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    OneShotConfig,
    PruningConfig,
    QuantizationConfig,
    cache_teacher,
    export,
    prune_oneshot,
    push,
    quantize,
    run_recipe,
)
from hf_compress.training.checkpoint import last_complete_checkpoint

# Of the run in this process; the second of two processes takes it over.
ENDING: dict = {}


def train(folder: Path, **changes) -> None:
    """Prune and distil, with projections and accumulation; go on at the newest whole checkpoint."""
    options = {"max_steps": 12, "save_steps": 3, "save_total_limit": 2, "gradient_accumulation_steps": 2, **changes}
    trainer = CompressionTrainer(
        # The first step writes the kind of problem into the config, where a run that resumes after the last has none.
        tiny.bert(0, dropout=0.1, problem_type="single_label_classification"),
        tiny.arguments(folder / "work", save_strategy="steps", **options),
        compression=CompressionConfig(
            DistillationConfig(hidden_weight=1.0),
            PruningConfig(sparsity=0.5, structure="ffn", criterion="movement", regrow=True, frequency=2),
        ),
        teacher=tiny.bert(1, hidden_size=24),
        train_dataset=tiny.sentences(),
    )
    whole = last_complete_checkpoint(
        folder / "work", world_size=trainer.args.world_size, files=trainer.checkpoint_files
    )
    trainer.train(resume_from_checkpoint=str(whole) if whole else None)
    trainer.save_compressed(folder / "out")


def ranks(folder: Path) -> None:
    """Train in two processes under torchrun's launcher."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    one = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "monitor_interval": 0.05}
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": folder.name}
    elastic_launch(LaunchConfig(**one, **meeting, start_method="fork", max_restarts=0), _rank)(folder, dict(ENDING))


def _rank(folder: Path, ending: dict) -> None:
    if os.environ["RANK"] == "1":
        end_at(**ending)
    train(folder, gradient_accumulation_steps=1, save_total_limit=None)


def cache(folder: Path) -> None:
    cache_teacher(
        tiny.llama(1),
        tiny.texts(200),
        folder / "out",
        CacheConfig(batch_size=1, top_k=4),
        progress=False,
        device="cpu",
    )


def oneshot(folder: Path) -> None:
    batches = [{"input_ids": part} for part in oneshot_runs.rows(vocabulary=50).split(4)]
    prune_oneshot(folder.parent / "llama", OneShotConfig(sparsity=0.5), batches, folder / "out", device="cpu")


def oneshot_in_memory(folder: Path) -> None:
    batches = [{"input_ids": part} for part in oneshot_runs.rows(vocabulary=50).split(4)]
    prune_oneshot(tiny.llama(0), OneShotConfig(sparsity=0.5), batches, folder / "out")


def eight_bit(folder: Path) -> None:
    quantize(folder.parent / "llama", folder / "out", QuantizationConfig())


def onnx(folder: Path) -> None:
    export(folder.parent / "bert", "onnx", folder / "out")


def send(folder: Path) -> None:
    push(folder.parent / "bert", f"tester/{folder.name}")


def recipe(folder: Path) -> None:
    run_recipe({**tiny_recipe.RECIPE, "measure": {"batch_sizes": [1], "models": ["student"]}}, folder / "out")


RUNS = {
    "train": train, "ranks": ranks, "cache": cache, "oneshot": oneshot, "oneshot in memory": oneshot_in_memory,
    "quantize": eight_bit, "export": onnx, "push": send, "recipe": recipe,
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Write the models that runs start from."""
    tiny.llama(0, num_hidden_layers=4, head_dim=8).save_pretrained(folder / "llama")
    tiny.bert(0).save_pretrained(folder / "bert")


def end_at(at: str = "", call: int = 1, signal: int = signal.SIGKILL, **_: object) -> None:
    """Replace a function by one that ends the process at a call of it."""
    if not at:
        return
    module, _, path = at.partition(":")
    *parents, name = path.split(".")
    owner = pkgutil.resolve_name(f"{module}:{'.'.join(parents)}" if parents else module)
    function, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def in_child(request: dict, log: Path) -> None:
    """Do one run and leave the process."""
    code = 1
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(out, stream)
    # Shells have what they start in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        torch.manual_seed(0)
        ENDING.update(request)
        if request["run"] != "ranks":
            end_at(**request)
        RUNS[request["run"]](Path(request["folder"]))
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def answer(request: dict) -> dict:
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    child = os.fork()
    if not child:
        in_child(request, log)
    if "after" in request:
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if processor_time(child) >= request["after"]:
                os.kill(child, request["signal"])
                break
            time.sleep(0.001)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    seconds = processor_time(child)
    _, status = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "text": log.read_text(errors="replace")}


def processor_time(process: int) -> float:
    """Return the seconds that a process has computed, without its children, by Linux's number of that clock."""
    return time.clock_gettime((~process << 3) | 2)


def serve() -> None:
    torch.set_num_threads(1)
    # What a run imports when it needs it.
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    from transformers import Trainer  # noqa: F401

    import hf_compress.recipes.stages  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["run"] == "prepare":
            prepare(Path(request["folder"]))
            print("{}", flush=True)
        else:
            print(json.dumps(answer(request)), flush=True)


if __name__ == "__main__":
    serve()
