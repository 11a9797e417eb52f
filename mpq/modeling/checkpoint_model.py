"""A model built from a packed checkpoint: its class from the configuration, its tensors decoded.

The model is built by transformers with tensors that take no memory (one zero, expanded), so that
ties, buffers that no file holds (rotary frequencies) and dtypes are its own doing; then each
parameter is given its values. No weight is drawn at random, and none exists twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from mpq.errors import CheckpointError
from mpq.modeling.checkpoint_reading import Checkpoint
from mpq.modeling.experts import expert_layers, projections
from mpq.modeling.packed import PackedWeight, unpack_weight, with_tensors

Stored = Tensor | PackedWeight
"""A tensor as it lies in a checkpoint."""


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration of a model as a checkpoint stores it: with its class and its dtype."""
    config: dict[str, Any] = model.config.to_dict()
    config.pop("_name_or_path", None)  # a place on the machine that converts
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    return config


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Where a tensor of a model comes from.

    Attributes:
        tensor: The parameter or persistent buffer.
        name: Its name in the state dict; of a tied one the name that the checkpoint has.
        shape: Its shape.
        parts: Index along its first axis (None: the whole) -> name in the checkpoint.
    """

    tensor: Tensor
    name: str
    shape: torch.Size
    parts: Mapping[int | None, str]

    def stored(self, checkpoint: Checkpoint) -> list[Stored]:
        """What the checkpoint holds for each part; memory of the mapped files."""
        return [
            checkpoint.packed(name) if name in checkpoint.packed_facts else checkpoint.dense(name)
            for name in self.parts.values()
        ]

    def values(self, stored: Sequence[Stored], out: Tensor) -> Tensor:
        """The tensor's values, decoded into `out`, of the shape, `dtype_of(stored)` and device."""
        if None in self.parts:
            return _decoded(stored[0], out)
        for part, one in zip(self.parts, stored, strict=True):
            _decoded(one, out[part])
        return out


def dtype_of(stored: Sequence[Stored]) -> torch.dtype:
    """The dtype of a tensor's values, of which these are the parts."""
    first = stored[0]
    return first.dtype if isinstance(first, Tensor) else first.encoded.dtype


def _decoded(stored: Stored, out: Tensor) -> Tensor:
    if isinstance(stored, Tensor):
        return out.copy_(stored)
    return unpack_weight(with_tensors(stored, lambda x: x.to(out.device)), out=out)


def build_model(checkpoint: Checkpoint) -> tuple[PreTrainedModel, list[Source]]:
    """The checkpoint's model without values, in eval mode on the CPU, and where these come from.

    Raises:
        CheckpointError: transformers has no such class, or the checkpoint lacks a tensor of the
            model, has one too many, or one of another shape.
    """
    model_class = _class(checkpoint)
    config = AutoConfig.for_model(**checkpoint.config)
    dtype = getattr(torch, checkpoint.config["dtype"])
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in model_class(config).state_dict().items()}
    empty = {name: torch.zeros((), dtype=dtype).expand(shape) for name, shape in shapes.items()}
    with _without_progress():
        model: PreTrainedModel = model_class.from_pretrained(
            None, config=config, state_dict=empty, dtype=dtype, local_files_only=True
        )
    _add_biases(model, checkpoint)
    model.config.name_or_path = str(checkpoint.path)
    if model.can_generate() and (checkpoint.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    return model, _sources(model, checkpoint)


@contextmanager
def _without_progress() -> Iterator[None]:
    """A context in which transformers draws no bar: what it loads here are no values."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Nothing comes back; the buffers are on the device, parameters where they were."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _class(checkpoint: Checkpoint) -> Any:
    name = checkpoint.config["architectures"][0]
    found = getattr(transformers, name, None)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.path} holds a {name}, and transformers {transformers.__version__} has "
            f"none; it was written with {checkpoint.quantization['packages']['transformers']}"
        )
    return found


def _add_biases(model: nn.Module, checkpoint: Checkpoint) -> None:
    for name in checkpoint.biases_added:
        layer = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(layer, nn.Linear) or getattr(layer, "bias", None) is not None:
            raise CheckpointError(
                f"{checkpoint.path} adds {name} to a {type(layer).__name__}, which takes none; "
                "only a Linear without a bias can be given one. Convert again"
            )
        layer.bias = nn.Parameter(
            torch.zeros((), dtype=layer.weight.dtype).expand(layer.out_features)
        )


def _sources(model: PreTrainedModel, checkpoint: Checkpoint) -> list[Source]:
    stored = {*checkpoint.sites, *checkpoint.dense_names}
    used: set[str] = set()
    found: list[Source] = []
    missing: list[str] = []
    for names, tensor in _tensors(model):
        source = _source(names, tensor, _expert_parts(model), stored)
        if source is None:
            missing.append(names[0])
            continue
        used |= set(source.parts.values())
        found.append(source)
    faults = [*(f"{name} is missing" for name in missing)]
    faults += [f"{name} is none of the model's tensors" for name in sorted(stored - used)]
    faults += [fault for source in found for fault in _misshapen(source, checkpoint)]
    if faults:
        raise CheckpointError(
            f"{checkpoint.path} does not fit {type(model).__name__}: {'; '.join(faults)}. "
            "Convert again"
        )
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[list[str], Tensor]]:
    """The tensors of the state dict, each with all of its names."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    for key, tensor in tensors.items():
        yield names[key], tensor


def _expert_parts(model: nn.Module) -> dict[str, dict[int | None, str]]:
    """State-dict name of fused expert tensors -> index of an expert -> its name in files."""
    found: dict[str, dict[int | None, str]] = {}
    for name, experts in expert_layers(model):
        for projection in projections(experts):
            for tensor, role in ((projection, "weight"), (f"{projection}_bias", "bias")):
                parameter = getattr(experts, tensor, None)
                if isinstance(parameter, nn.Parameter):
                    found[f"{name}.{tensor}"] = {
                        index: f"{name}.{index}.{projection}.{role}"
                        for index in range(parameter.shape[0])
                    }
    return found


def _source(
    names: Sequence[str],
    tensor: Tensor,
    experts: Mapping[str, Mapping[int | None, str]],
    stored: set[str],
) -> Source | None:
    for name in names:
        if name in stored:
            return Source(tensor=tensor, name=name, shape=tensor.shape, parts={None: name})
        parts = experts.get(name, {})
        if parts and set(parts.values()) <= stored:
            return Source(tensor=tensor, name=name, shape=tensor.shape, parts=parts)
    return None


def _misshapen(source: Source, checkpoint: Checkpoint) -> Iterator[str]:
    for part, name in source.parts.items():
        wanted = tuple(source.shape if part is None else source.shape[1:])
        facts = checkpoint.packed_facts.get(name) or checkpoint.dense_facts[name]
        if facts.shape != wanted:
            yield f"{name} has shape {facts.shape}, and the model's has {wanted}"
