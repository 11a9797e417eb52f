"""One block converted: its weights stage by stage, then its biases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mpq.convert.hessian import HessianSum
from mpq.convert.report import TensorReport
from mpq.convert.solver import SolverOptions
from mpq.convert.weights import (
    ConvertedTensor,
    corrected_bias,
    give_bias,
    pack_bias,
    round_stored,
    solve_all,
)
from mpq.modeling.capture import Reader, in_order_of_calls, inputs_seen, readers_of
from mpq.modeling.packed import PackedWeight
from mpq.modeling.residence import put
from mpq.modeling.sites import Place
from mpq.plans.plan import Plan

HESSIAN_BYTES = 8 * 2**30
"""What the sums of one round of passes may take together in a computer's own memory."""

SHARE_OF_DEVICE = 4
"""One part in so many of a device's free memory may go to sums: solving takes as much again as the
largest of them, several times over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkOptions:
    """How a model is converted.

    Attributes:
        solver: Of every weight.
        true_sequential: Weights of a block are solved in the order in which they are read, each
            calibrated behind the ones before it; else all on one pass of the block as it was.
        bias_correction: Biases make up for the mean error of their layer's output.
        batch_size: Windows in one pass.
        activations: Folder for hidden states between blocks; None keeps them in memory.
    """

    solver: SolverOptions = field(default_factory=SolverOptions)
    true_sequential: bool = True
    bias_correction: bool = False
    batch_size: int = 4
    activations: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvertedBlock:
    """The tensors of one block as the checkpoint will hold them.

    Attributes:
        packed: Site -> what is stored.
        biases: Name of a bias that is not packed and is another than before -> its values.
        reports: One for each packed tensor.
    """

    packed: Mapping[str, PackedWeight]
    biases: Mapping[str, Tensor]
    reports: tuple[TensorReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockWork:
    """A block to be converted.

    Attributes:
        places: The stored tensors of it that the plan names.
        plan: Names their formats, and those of inputs.
        options: How.
        passes: Each runs the block on one batch of calibration windows; none for `rtn`.
        device: Where the block lies.
    """

    places: tuple[Place, ...]
    plan: Plan
    options: WalkOptions
    passes: tuple[Callable[[], object], ...]
    device: torch.device


def convert_block(work: BlockWork) -> ConvertedBlock:
    """The block's tensors in their formats; the block holds what they read back as.

    Raises:
        ModelError: A weight or an activation is not finite; names it.
    """
    weights = [place for place in work.places if place.site.role == "weight"]
    inputs = {name: str(format) for name, format in work.plan.formats.items()}
    readers = readers_of(weights, inputs)
    done: list[ConvertedTensor] = []
    biases: dict[str, Tensor] = {}
    for stage in _stages(work, readers):
        made: list[ConvertedTensor] = []
        for portion in in_portions(stage, hessian_room(work.device)):
            sums = sums_seen(portion, work.passes, work.device)
            for reader in portion:
                # Each sum goes with its use: a large layer's Hessian takes gigabytes.
                made += _convert_reader(work, reader, sums.pop(reader.name, None), biases)
        # Only now, so that all of a stage is calibrated on the same block.
        put([(tensor.place, tensor.values) for tensor in made])
        _give_biases(made, biases)
        done += made
    done += _convert_biases(work, biases)
    return ConvertedBlock(
        packed={tensor.place.site.name: tensor.packed for tensor in done},
        biases=biases,
        reports=tuple(tensor.report for tensor in done),
    )


def _stages(work: BlockWork, readers: Sequence[Reader]) -> list[list[Reader]]:
    """What is calibrated on the same state of the block."""
    if not work.passes or not work.options.true_sequential:
        return [list(readers)]
    return in_order_of_calls(readers, work.passes[0])


def hessian_room(device: torch.device) -> int:
    """Bytes that the sums of one round of passes may take together; a sum alone may take more."""
    if device.type != "cuda":
        return HESSIAN_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(HESSIAN_BYTES, free // SHARE_OF_DEVICE)


def in_portions(readers: Sequence[Reader], limit: int) -> list[list[Reader]]:
    """The readers in their order, in runs whose Hessians take no more than so many bytes together.

    A mixture's projection has a Hessian for every expert. A reader whose own takes more is alone.
    """
    portions: list[list[Reader]] = []
    taken = 0
    for reader in readers:
        size = 8 * _num_inputs(reader) ** 2
        if not portions or taken + size > limit:
            portions.append([])
            taken = 0
        portions[-1].append(reader)
        taken += size
    return portions


def sums_seen(
    readers: Sequence[Reader], passes: Sequence[Callable[[], object]], device: torch.device
) -> dict[str, HessianSum]:
    """The sums over what each reader reads, by its name; none of those that cannot be seen.

    Args:
        readers: Of one block.
        passes: Each runs the block on one batch; none where nothing is looked at.
        device: Where the block lies.

    Raises:
        ModelError: An input is not finite; names the weight.
    """
    visible = [reader for reader in readers if reader.can_be_seen]
    if not passes or not visible:
        return {}
    sums = {
        reader.name: HessianSum(
            _num_inputs(reader), device=device, name=reader.places[0].site.name
        )
        for reader in visible
    }
    with inputs_seen(visible, lambda reader, x: sums[reader.name].add(x)) as run_until_seen:
        for run in passes:
            run_until_seen(run)
    return sums


def _convert_reader(
    work: BlockWork, reader: Reader, seen: HessianSum | None, biases: dict[str, Tensor]
) -> list[ConvertedTensor]:
    options = work.options.solver
    if options.method == "rtn":
        done = [round_stored(place, work.plan, options, "") for place in reader.places]
    else:
        done = solve_all(reader, seen, work.plan, options)
    if not work.options.bias_correction or seen is None:
        return done
    return [_with_bias(tensor, seen, biases) for tensor in done]


def _with_bias(
    tensor: ConvertedTensor, seen: HessianSum, biases: dict[str, Tensor]
) -> ConvertedTensor:
    """The same tensor, its layer's corrected bias noted."""
    had_none = getattr(tensor.place.module, "bias", None) is None
    biases[_bias_name(tensor)] = corrected_bias(tensor.place, tensor.values, seen.mean)
    report = replace(
        tensor.report,
        bias="added" if had_none else "corrected",
        num_tokens=seen.num_tokens,
    )
    return replace(tensor, report=report)


def _bias_name(tensor: ConvertedTensor) -> str:
    return tensor.place.site.name.removesuffix(".weight") + ".bias"


def _give_biases(made: Sequence[ConvertedTensor], biases: Mapping[str, Tensor]) -> None:
    for tensor in made:
        if _bias_name(tensor) in biases:
            give_bias(tensor.place.module, biases[_bias_name(tensor)])


def _convert_biases(work: BlockWork, biases: dict[str, Tensor]) -> list[ConvertedTensor]:
    """The biases that the plan names; they leave `biases`, and are in force afterwards."""
    places = [place for place in work.places if place.site.role == "bias"]
    done = [pack_bias(place, work.plan) for place in places]
    put([(tensor.place, tensor.values) for tensor in done])
    for place in places:
        biases.pop(place.site.name, None)
    return done


def _num_inputs(reader: Reader) -> int:
    site = reader.places[0].site
    return site.shape[site.axis]
