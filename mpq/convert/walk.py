"""The walk: every block in turn is calibrated, solved, and run with what it became.

GPTQ's driver (Frantar et al. 2022, section 3.3 and its code): the inputs of a block are what the
converted blocks before it give. Within a block, weights are solved in the order in which they are
read (true-sequential), each calibrated on what the ones before it, converted, hand on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpq.convert.block import BlockWork, ConvertedBlock, WalkOptions, convert_block
from mpq.convert.conversion import Conversion
from mpq.convert.finished import AFTER, BEFORE, FinishedBlocks, block_key
from mpq.convert.judging import judge_heldout
from mpq.convert.report import HeldoutReport
from mpq.convert.streams import Progress, Stream, advance, passes, start_stream
from mpq.convert.weights import give_bias
from mpq.modeling.block_calls import enter_blocks, leave_blocks
from mpq.modeling.blockwise import stack_of
from mpq.modeling.linear import linear_layers
from mpq.modeling.packed import unpack_weight
from mpq.modeling.residence import on_device, outside_of_blocks, put
from mpq.modeling.sites import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def walk(
    conversion: Conversion, finished: FinishedBlocks, progress: Progress
) -> HeldoutReport | None:
    """How the converted model does on held-out windows; its tensors lie in `finished`.

    The model is what it was afterwards. Blocks that are in `finished` are not solved again.

    Args:
        conversion: What is converted, and how.
        finished: Where each block's tensors go as soon as they are solved.
        progress: Told about every block.

    Raises:
        ModelError: A weight or an activation is not finite; names it.
    """
    calibration, heldout, reference = _streams(conversion, finished)
    found = stack_of(conversion.model)
    device = conversion.device
    for index, (_, block) in enumerate(found):
        progress("blocks", index, len(found))
        with _worked_on([block], device):
            if reference is not None:
                advance(reference, block, index, device)
            with conversion.under_activations():
                _settle(conversion, finished, index, block, calibration)
                for stream in (calibration, heldout):
                    if stream is not None:
                        advance(stream, block, index, device)
    progress("blocks", len(found), len(found))
    _convert_after(conversion, finished, calibration)
    if heldout is None or reference is None:
        return None
    return _judge(conversion, finished, (heldout, reference), progress)


def _streams(
    conversion: Conversion, finished: FinishedBlocks
) -> tuple[Stream | None, Stream | None, Stream | None]:
    """Calibration, held-out windows, and the same through the model as it was given."""
    model, options, device = conversion.model, conversion.options, conversion.device
    start = partial(_start, model, options, device)
    with _worked_on(outside_of_blocks(model), device):
        reference = start(conversion.heldout, "reference")
        early, _ = _outside(conversion)
        if BEFORE not in finished:
            finished.write(BEFORE, convert_block(_work(conversion, early, ())))
        _take_over(conversion, finished.read(BEFORE))
        with conversion.under_activations():
            is_blind = options.solver.method == "rtn" and not options.bias_correction
            calibration = None if is_blind else start(conversion.calibration, "calibration")
            return calibration, start(conversion.heldout, "heldout"), reference


def _start(
    model: PreTrainedModel,
    options: WalkOptions,
    device: torch.device,
    tokens: Tensor | None,
    name: str,
) -> Stream | None:
    if tokens is None:
        return None
    folder = None if options.activations is None else options.activations / name
    return start_stream(model, torch.split(tokens.to(device), options.batch_size), folder)


def _outside(conversion: Conversion) -> tuple[list[Place], list[Place]]:
    """What is converted before the blocks, and behind them: what runs once they have run."""
    model = conversion.model
    outside = [place for place in conversion.stored.values() if place.site.block < 0]
    called: set[int] = set()
    with ExitStack() as stack:
        for place in outside:
            hook = place.module.register_forward_pre_hook(lambda at, _: called.add(id(at)))
            stack.callback(hook.remove)
        # From the first block on, whatever is called lies behind the blocks.
        first = stack_of(model)[0][1]
        stack.callback(first.register_forward_pre_hook(lambda *_: stack.close()).remove)
        enter_blocks(model, conversion.calibration[:1].to(model.device))
    early = [p for p in outside if p.is_embedding or id(p.module) in called]
    return early, [place for place in outside if place not in early]


def _settle(
    conversion: Conversion,
    finished: FinishedBlocks,
    index: int,
    block: nn.Module,
    calibration: Stream | None,
) -> None:
    """Gives a block its converted tensors: those that are kept, or new ones, which are kept."""
    key = block_key(index)
    if key in finished:
        _take_over(conversion, finished.read(key))
        return
    members = [place for place in conversion.stored.values() if place.site.block == index]
    device = conversion.device
    runs = () if calibration is None else tuple(passes(calibration, block, index, device))
    finished.write(key, convert_block(_work(conversion, members, runs)))


def _work(
    conversion: Conversion, members: Sequence[Place], runs: Sequence[Callable[[], object]]
) -> BlockWork:
    return BlockWork(
        places=tuple(members),
        plan=conversion.plan,
        options=conversion.options,
        passes=tuple(runs),
        device=conversion.device,
    )


def _take_over(conversion: Conversion, block: ConvertedBlock) -> None:
    put(_values(conversion, block))
    _give_biases(conversion, block)


def _values(conversion: Conversion, block: ConvertedBlock) -> list[tuple[Place, Tensor]]:
    stored = conversion.stored
    return [(stored[site], unpack_weight(packed)) for site, packed in block.packed.items()]


def _give_biases(conversion: Conversion, block: ConvertedBlock) -> None:
    for name, bias in block.biases.items():
        module = conversion.model.get_submodule(name.removesuffix(".bias"))
        give_bias(module, bias.to(conversion.device))


def _convert_after(
    conversion: Conversion, finished: FinishedBlocks, calibration: Stream | None
) -> None:
    if AFTER in finished:
        return
    _, late = _outside(conversion)
    with (
        _worked_on(outside_of_blocks(conversion.model), conversion.device),
        conversion.under_activations(),
    ):
        _take_over(conversion, finished.read(BEFORE))
        runs = [] if calibration is None or not late else _leaving(conversion, calibration)
        finished.write(AFTER, convert_block(_work(conversion, late, runs)))


def _leaving(conversion: Conversion, stream: Stream) -> list[Callable[[], object]]:
    """One function a batch that runs what lies behind the blocks."""
    return [partial(_leave, conversion, stream, number) for number in range(len(stream.batches))]


def _leave(conversion: Conversion, stream: Stream, number: int) -> Tensor:
    device = conversion.device
    hidden = stream.hidden[number].to(device)
    logits: Tensor = leave_blocks(
        conversion.model, stream.batches[number].to(device), hidden
    ).logits
    return logits


def _judge(
    conversion: Conversion,
    finished: FinishedBlocks,
    streams: tuple[Stream, Stream],
    progress: Progress,
) -> HeldoutReport:
    """The converted stream beside the given one, behind the blocks."""
    heldout, reference = streams
    outside, device = outside_of_blocks(conversion.model), conversion.device
    converted = [finished.read(key) for key in (BEFORE, AFTER)]
    values = [value for block in converted for value in _values(conversion, block)]

    def before(number: int) -> Tensor:
        with _worked_on(outside, device):
            return _leave(conversion, reference, number)

    def after(number: int) -> Tensor:
        progress("held-out text", number, len(heldout.batches))
        with _worked_on(outside, device):
            put(values)
            for block in converted:
                _give_biases(conversion, block)
            with conversion.under_activations():
                return _leave(conversion, heldout, number)

    found = judge_heldout(heldout.batches, before, after)
    progress("held-out text", len(heldout.batches), len(heldout.batches))
    return found


@contextmanager
def _worked_on(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """A context in which modules lie on a device and may be changed; all is undone afterwards."""
    bare = [
        layer
        for module in modules
        for _, layer in linear_layers(module)
        if getattr(layer, "bias", None) is None
    ]
    with on_device(modules, device):
        try:
            yield
        finally:
            for layer in bare:
                give_bias(layer, None)
