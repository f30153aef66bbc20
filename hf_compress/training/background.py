"""Uploads while training goes on, without training state, and without losing an error.

Level: glue.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from hf_compress.errors import HfCompressError, PushRefusedError

logger = logging.getLogger(__name__)


class BackgroundPush(TrainerCallback):
    """Sends the model of each checkpoint to the Hub in a thread, one at a time, one commit each.

    A push that fails is logged at once when it is noticed; if the last one failed, the end of training raises it.

    Args:
        repo_id: where to.
        token: of the Hub; None: the one logged in with.
        options: fields of `PushOptions`.
    """

    def __init__(self, repo_id: str, token: str | None, options: dict[str, Any]) -> None:
        self.repo_id = repo_id
        self._token, self._options = token, options
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._last: Future | None = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send what was just saved, once the push before is through."""
        if not state.is_world_process_zero:
            return
        self._wait()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._last = self._executor.submit(self._push, _copy_model(folder), state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the last push.

        Raises:
            HfCompressError: if it failed.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def _wait(self) -> None:
        if self._last is None:
            return
        error = self._last.exception()
        if isinstance(error, HfCompressError):
            logger.error("a push while training failed, the next one is tried all the same: %s", error)
        elif error is not None:
            raise error

    def _push(self, folder: Path, step: int) -> Any:
        from hf_compress.hub.push import push

        options = {**self._options, "commit_message": f"Training in progress, step {step}"}
        try:
            return push(folder, self.repo_id, token=self._token, **options)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _copy_model(folder: Path) -> Path:
    """Copy what a push of `folder` would send, since the Trainer may delete it meanwhile; the rest is training state.

    Raises:
        PushRefusedError: if there is something that must not leave this machine.
    """
    from hf_compress.hub.scan import scan_folder

    scan = scan_folder(folder)
    if scan.refused:
        listed = "; ".join(f"{path}: {reason}" for path, reason in scan.refused)
        raise PushRefusedError(f"{folder.name} was not pushed, nothing was sent: {listed}")
    target = Path(tempfile.mkdtemp(prefix="hf_compress_push_"))
    for file in scan.send:
        (target / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / file.path, target / file.path)
    return target
