"""`quantize`: from a plain model folder to a quantized one that stock transformers loads, checked by loading it back.

Level: state.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.decoder import without_labels
from hf_compress.architecture.heads import head_modules
from hf_compress.architecture.loading import refusing
from hf_compress.architecture.probing import build_errors
from hf_compress.architecture.targets import expert_stacks
from hf_compress.errors import ConfigError, QuantizationError
from hf_compress.measurement import load
from hf_compress.measurement.inputs import check_sample, dummy_inputs, floating_dtype, sized_inputs
from hf_compress.output import copy_companions, free_folder, whole_folder
from hf_compress.quantization.config import QuantizationConfig
from hf_compress.quantization.schemes import Scheme, is_transposed, scheme_of, usable_scheme

# Equal weights give equal logits; what remains is the order of float additions.
_RELOAD_TOLERANCE = 1e-4

Batch = Mapping[str, torch.Tensor]


def quantize(
    source: str | Path,
    output: str | Path,
    config: QuantizationConfig | None = None,
    batches: Sequence[Batch] = (),
) -> Path:
    """Write a quantized copy of the model folder `source` to `output`, which loads with stock `from_pretrained`.

    Linear layers are quantized; the output head, `config.skip_modules` and layers that the scheme cannot take or run
    are left alone. The copy is saved and loaded back: both must give the same logits. `source` stays as it is: other
    formats are made from it, never from the copy. Runs on CUDA where there is one, else on the CPU.

    Args:
        source: folder of a plain model.
        output: folder to make; it must not exist or be empty.
        config: scheme and options; LLM.int8() if not given.
        batches: inputs of the model for schemes that are calibrated (gptq), e.g. from `calibration_batches`. The
            model is tried out on two rows of the first, or on made-up ones.

    Returns:
        `output`.

    Raises:
        OutputExistsError: if `output` already holds something.
        ConfigError: if `source` is no saved model, there is no such scheme, or a batch is none.
        MissingDependencyError: if the package of the scheme is missing, with the line that installs it.
        QuantizationError: if an option is not for the scheme, samples are missing, the model is quantized already,
            has no linear layer to quantize, or loads back differently. Nothing is written then.
        UnsupportedError: if no inputs can be made up for the model, and there are no `batches`.
    """
    if isinstance(source, nn.Module):
        raise QuantizationError(
            f"quantize takes the folder of a transformers model, found a {type(source).__name__} in memory; save it "
            "with save_pretrained, or give it to export, which takes plain modules too"
        )
    config = config or QuantizationConfig()
    scheme = usable_scheme(config)
    if scheme.is_calibrated and not batches:
        raise QuantizationError(f"{config.scheme} is calibrated on samples: give batches, e.g. of calibration_batches")
    source, output = Path(source), free_folder(output)
    model_class = load.model_class(source)
    load.weight_files(source)
    if load.is_quantized(source):
        raise QuantizationError(f"{source.name} is quantized already; start from its 16- or 32-bit source")
    with whole_folder(output) as part:
        skip = modules_to_skip(model_class, source, config, scheme)
        model = load_quantized(source, config, skip, batches)
        if failing := failing_layers(model, config, scheme, batches):
            skip = modules_to_skip(model_class, source, config, scheme, failing)
            model = load_quantized(source, config, skip, batches)
        # bitsandbytes repacks 4-bit weights for the CPU at the first forward pass and saves them wrongly after it.
        model.save_pretrained(part)
        inputs = _inputs(model, batches)
        with _running(model, config):
            _check_reload(model, model_class, part, inputs)
        copy_companions(source, part)
    return output


def load_quantized(source: str | Path, config: QuantizationConfig, skip: Sequence[str], batches: Any = ()) -> Any:
    """Load a plain model folder and quantize it in memory, in eval mode.

    Args:
        source: folder of a plain model.
        config: scheme and options.
        skip: names of all modules to leave alone.
        batches: for schemes that are calibrated.

    Raises:
        ConfigError: if weights are missing.
        QuantizationError: if transformers cannot load or quantize it.
    """
    scheme = scheme_of(config)
    dtype = {} if config.dtype is None else {"dtype": getattr(torch, config.dtype)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"quantization_config": scheme(config, skip, batches), "device_map": {"": device}, **dtype}
    with refusing(QuantizationError, str(source), f"{config.scheme} does not take this model"):
        model, info = load.model_class(source).from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(f"{source} lacks {len(missing)} weights, for example {missing[0]}; save the model again")
    if scheme.is_calibrated:
        # The samples would be written into config.json.
        model.config.quantization_config.dataset = model.config.quantization_config.tokenizer = None
    return model.eval()


def modules_to_skip(
    model_class: Any,
    source: Path,
    config: QuantizationConfig,
    scheme: Scheme,
    failing: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the names of modules that stay as they are: heads, those asked for, and those that do not fit.

    Args:
        model_class: of transformers.
        source: folder of a plain model.
        config: with `skip_modules`.
        scheme: that `config` names.
        failing: layers that turned out not to run, with the reason.

    Raises:
        QuantizationError: if a name matches nothing, or nothing is left to quantize.
    """
    from transformers import AutoConfig

    with refusing(ConfigError, str(source)), torch.device("meta"):
        skeleton = model_class(AutoConfig.from_pretrained(source, trust_remote_code=False))
    stacked = expert_stacks(skeleton)
    if stacked:
        share = sum(p.numel() for p in skeleton.parameters() if id(p) in stacked) / skeleton.num_parameters()
        warnings.warn(
            f"transformers quantizes linear layers only: the stacked weights of {model_class.__name__}'s experts, "
            f"{share:.0%} of its parameters, stay as they are",
            stacklevel=3,
        )
    return [*head_modules(skeleton), *config.skip_modules, *check_quantizable(skeleton, config, scheme, failing)]


def check_quantizable(
    model: nn.Module, config: QuantizationConfig, scheme: Scheme, failing: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the linear layers that must be left alone, with the reason, if others are left to quantize.

    Raises:
        QuantizationError: if there is none, the scheme does not take the model, or `config.skip_modules` matches no
            module.
    """
    if reason := scheme.refuses(model):
        raise QuantizationError(
            f"{type(model).__name__} cannot be quantized with {config.scheme}: {reason}; take int8 or nf4 of "
            "bitsandbytes, or export it in 8 bit"
        )
    fit, unfit = layers_by_fit(model, config, scheme)
    unfit |= failing or {}
    if not fit.keys() - unfit.keys():
        reasons = "; ".join(f"{n}: {reason}" for n, reason in list(unfit.items())[:3])
        raise QuantizationError(
            f"{type(model).__name__} has no linear layer to quantize besides its output head and the skipped modules "
            f"({', '.join(config.skip_modules) or 'none'}){'; ' + reasons if reasons else ''}"
        )
    return unfit


def layers_by_fit(
    model: nn.Module, config: QuantizationConfig, scheme: Scheme
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the linear layers that are quantized, and those that do not fit with the reason; heads are in neither.

    Raises:
        QuantizationError: if `config.skip_modules` matches no module.
    """
    known = [name for name, _ in model.named_modules() if name]
    unknown = [s for s in config.skip_modules if not any(_is_skipped(name, [s]) for name in known)]
    if unknown:
        raise QuantizationError(f"skip_modules matches no module: {', '.join(unknown)}")
    layers = dict(linear_layers(model, [*head_modules(model), *config.skip_modules]))
    unfit = {name: reason for name, module in layers.items() if (reason := scheme.unfit(module, config))}
    return {name: module for name, module in layers.items() if name not in unfit}, unfit


def linear_layers(model: nn.Module, skip: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers, GPT-2's transposed ones too, that are quantized with `skip` as the names to leave."""
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or is_transposed(module)) and not _is_skipped(name, skip):
            yield name, module


def _is_skipped(name: str, skip: Sequence[str]) -> bool:
    # As transformers matches them: beginnings up to a dot, as regular expressions, and ends.
    return any(re.match(rf"(?:{s})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(s) for s in skip)


def failing_layers(
    model: nn.Module, config: QuantizationConfig, scheme: Scheme, batches: Sequence[Batch] = ()
) -> dict[str, str]:
    """Return the layers of `model`, quantized or not yet, that the scheme cannot run, with the reason.

    Raises:
        QuantizationError: if the model fails on made-up inputs, or on those of `batches`.
        UnsupportedError: if no inputs can be made up, and there are no `batches`.
    """
    inputs = _inputs(model, batches)
    with _running(model, config):
        return scheme.cannot_run(model, inputs)


def _inputs(model: Any, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    if not batches:
        return dummy_inputs(model, batch_size=2)
    check_sample(batches[0])
    found = sized_inputs(model, 2, sample=without_labels(model, batches[0]))
    return {name: t.to(floating_dtype(model)) if t.is_floating_point() else t for name, t in found.items()}


@contextlib.contextmanager
def _running(model: nn.Module, config: QuantizationConfig) -> Iterator[None]:
    try:
        yield
    except QuantizationError:
        raise
    except build_errors() as error:
        raise QuantizationError(
            f"{type(model).__name__} fails in a forward pass, for {config.scheme}: "
            f"{str(error) or type(error).__name__}; if made-up inputs do not suit it, give batches; name in "
            "skip_modules the layers whose weights it reads without calling them (in WavLM q_proj, k_proj, v_proj and "
            "out_proj), or take another scheme"
        ) from error


@torch.inference_mode()
def _check_reload(model: Any, model_class: Any, folder: Path, inputs: Mapping[str, torch.Tensor]) -> None:
    expected = model(**inputs)[0].float()
    with refusing(QuantizationError, "what was quantized", "nothing was written"):
        again = model_class.from_pretrained(folder, device_map={"": model.device}).eval()
    found = again(**inputs)[0].float()
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= _RELOAD_TOLERANCE:
        raise QuantizationError(
            f"the saved model gives other outputs than the quantized one in memory (relative difference "
            f"{difference:.2g}, at most {_RELOAD_TOLERANCE:g} expected); nothing was written. Try double_quant=True "
            "or another version of the scheme's package"
        )
