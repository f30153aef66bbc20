"""Which parameters unstructured pruning zeroes.

Level: state.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from hf_compress.errors import TargetError

_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED_CONVOLUTIONS)


@dataclass(frozen=True)
class Target:
    """One parameter to compress.

    Args:
        name: its full name in the model.
        parameter: the parameter itself, not a copy.
        input_dim: which of its dimensions is that of the inputs: 1, or 0 where it is stored transposed; of a stack 2,
            or 1.
        is_stack: whether it holds one matrix for each expert, along its first dimension.
    """

    name: str
    parameter: nn.Parameter
    input_dim: int = 1
    is_stack: bool = False


def find_targets(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Target]:
    """Return the parameters to compress, tied ones once, in the order of the model.

    By default these are the trainable weights of the linear and convolutional layers and of the experts of the body:
    no embeddings, norms, biases or output heads (what stands outside the base model, or the last layer of a plain
    module). Of a model with PEFT adapters they are the weights under the adapters, although these are frozen, and
    never the adapters.

    Args:
        model: any module; for transformers models the body is `model.base_model`.
        include: regular expressions, searched in full parameter names; any parameter that matches one is a target,
            and nothing else is.
        exclude: regular expressions; a parameter that matches one is no target.

    Raises:
        TargetError: if a pattern is malformed or matches no parameter, or if no target is left.
    """
    aliases = _aliases(model)
    names = [alias for group in aliases.values() for alias in group]
    wanted = compile_patterns("include", include, names)
    unwanted = compile_patterns("exclude", exclude, names)
    transposed, stacks = set(_transposed(model)), expert_stacks(model)
    chosen = None if wanted else {id(p) for p in _default_parameters(model)}
    targets = []
    for name, parameter in model.named_parameters():
        known_as = aliases[id(parameter)]
        is_wanted = _any_match(wanted, known_as) if chosen is None else id(parameter) in chosen
        if is_wanted and not _any_match(unwanted, known_as):
            inputs = stacks.get(id(parameter), 0 if id(parameter) in transposed else 1)
            targets.append(Target(name, parameter, inputs, id(parameter) in stacks))
    if not targets:
        raise TargetError(
            f"expected at least one parameter to compress in {type(model).__name__}, found none: no trainable linear "
            "or convolutional weight in its body is left after include and exclude; name some with include, such as "
            f"{names[:3]}"
        )
    return targets


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    """Return identity -> every name of each parameter, so that a pattern can name a tied weight by any of them."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def compile_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> list[re.Pattern[str]]:
    """Compile regular expressions that are searched in parameter names.

    Raises:
        TargetError: if one is malformed or matches none of `names`.
    """
    if isinstance(patterns, str):
        raise TargetError(
            f"{option}: expected a list of patterns, found the string {patterns!r}; write [{patterns!r}]"
        )
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise TargetError(f"{option}: {pattern!r} is no regular expression: {error}; escape its dots") from error
        if not _any_match(compiled[-1:], names):
            raise TargetError(f"{option}: {pattern!r} matches no parameter; {_near(pattern, names)}")
    return compiled


def _any_match(patterns: Iterable[re.Pattern[str]], names: Iterable[str]) -> bool:
    names = list(names)
    return any(pattern.search(name) for pattern in patterns for name in names)


def _near(pattern: str, names: Sequence[str]) -> str:
    """Name what resembles `pattern` among the parts of parameter names that have as many components."""
    plain = re.sub(r"[\^$()?*+|\\]", "", pattern).strip(".")
    length = plain.count(".") + 1
    parts = {part for name in names for part in _parts(name, length)}
    found = difflib.get_close_matches(plain, sorted(parts), n=3, cutoff=0.5)
    return f"did you mean {', '.join(map(repr, found))}?" if found else f"names look like {', '.join(names[:3])}"


def _parts(name: str, length: int) -> Iterator[str]:
    components = name.split(".")
    for start in range(max(1, len(components) - length + 1)):
        yield ".".join(components[start : start + length])


def adapter_parameters(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that PEFT has added to `model`."""
    found: set[int] = set()
    for module in model.modules():
        # What PEFT's tuner layers call their own parts, such as lora_A.
        for name in getattr(module, "adapter_layer_names", ()):
            part = getattr(module, name, None)
            found |= {id(p) for p in part.parameters()} if isinstance(part, nn.Module) else {id(part)}
    return found


def _default_parameters(model: nn.Module) -> list[nn.Parameter]:
    adapters = adapter_parameters(model)
    # PEFT's wrapper calls the whole model its base model.
    model = model.get_base_model() if adapters and hasattr(model, "get_base_model") else model
    weights = [w for w in _layer_weights(model) if id(w) not in adapters]
    base = getattr(model, "base_model", None)
    if isinstance(base, nn.Module) and base is not model:
        body = {id(p) for p in base.parameters()}
        weights = [weight for weight in weights if id(weight) in body]
    elif not hasattr(model, "get_output_embeddings"):
        # A plain module does not say where its head is; the last layer is the usual one.
        weights = weights[:-1]
    excluded = {id(p) for p in _embeddings_and_head(model)}
    return [w for w in weights if (w.requires_grad or adapters) and id(w) not in excluded]


def expert_stacks(model: nn.Module) -> dict[int, int]:
    """Return identity -> dimension of the inputs of each parameter that stacks the matrices of experts.

    Their modules are called `experts` all over transformers.
    """
    found = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts":
            inputs = 1 if getattr(module, "is_transposed", False) else 2
            own = module.named_parameters(recurse=False)
            found.update({id(p): inputs for name, p in own if p.dim() == 3 and "bias" not in name})
    return found


def _layer_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    stacks = expert_stacks(model)
    yield from (p for p in model.parameters() if id(p) in stacks)
    for module in model.modules():
        # Conv1D is GPT-2's linear layer with the weight transposed; a class name needs no import of transformers.
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and (is_linear and weight.dim() == 2 or isinstance(module, _CONVOLUTIONS)):
            yield weight


def _transposed(model: nn.Module) -> Iterator[int]:
    """Yield the identity of each weight that is stored as (inputs, outputs, ...)."""
    for module in model.modules():
        if type(module).__name__ == "Conv1D" or isinstance(module, _TRANSPOSED_CONVOLUTIONS):
            yield id(module.weight)


def _embeddings_and_head(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield what turns inputs into vectors and vectors into outputs; weights tied to them are the same objects."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(found, nn.Module):
            yield from found.parameters()
