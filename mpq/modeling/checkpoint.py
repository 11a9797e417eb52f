"""The door to packed checkpoints: written, opened, loaded as a model."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from mpq.errors import CheckpointError
from mpq.modeling.checkpoint_model import build_model, config_of, dtype_of, move_buffers
from mpq.modeling.checkpoint_reading import Checkpoint, open_checkpoint
from mpq.modeling.checkpoint_writing import write_checkpoint
from mpq.modeling.loading import LoadedModel, place_of
from mpq.modeling.offload import offload_blocks
from mpq.modeling.wrap import keep_activations

__all__ = ["Checkpoint", "config_of", "load", "model_of", "open_checkpoint", "write_checkpoint"]


def load(
    path: str | Path, *, device: str = "cpu", offload: bool = False, verify: bool = True
) -> LoadedModel:
    """The model of a packed checkpoint, in eval mode, its plan in force for as long as it lives.

    Its logits equal those of the model whose weights are the unpacked ones, bit for bit, under
    the plan's formats of activations. `loaded.model.generate(**tokens)` works as with any model.

    Args:
        path: The directory.
        device: "cpu", "cuda", "cuda:1", … ; "auto" is cuda where there is one, else cpu.
        offload: Whether the weights of the blocks stay packed outside of the device, and each
            block is decoded when it runs.
        verify: Whether every file is hashed first.

    Raises:
        CheckpointError: The directory is no whole checkpoint, or does not fit its model.
        ModelError: No such device.
    """
    place = place_of(device)
    checkpoint = open_checkpoint(path, verify=verify)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.path), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer that can be loaded: {error}. Copy the files of "
            "the model's tokenizer there"
        ) from error
    return LoadedModel(
        model=model_of(checkpoint, device=place, offload=offload),
        tokenizer=tokenizer,
        id=str(path),
        fingerprint=checkpoint.digest,
    )


def model_of(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", offload: bool = False
) -> PreTrainedModel:
    """The model of an open checkpoint, without a tokenizer; see `load`.

    Raises:
        CheckpointError: The checkpoint does not fit its model.
    """
    model, sources = build_model(checkpoint)
    place = torch.device(device)
    if offload:
        offload_blocks(model, sources, checkpoint, place)
    else:
        for source in sources:
            stored = source.stored(checkpoint)
            out = torch.empty(source.shape, dtype=dtype_of(stored), device=place)
            source.tensor.data = source.values(stored, out)
        move_buffers(model, place)
    keep_activations(model, checkpoint.plan)
    return model
