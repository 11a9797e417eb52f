"""Models by name: the one that ships with mpq, a Hugging Face id, or a directory."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mpq.errors import ModelError

SHIPPED_MODELS = {"mpq/tiny-llama": Path(__file__).parents[1] / "assets" / "tiny_llama"}
"""Models that lie inside the package, by id; loading one touches no network."""

TASKS: dict[str, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in eval mode, its tokenizer, and what identifies it.

    Attributes:
        model: As transformers loads it; its attention implementation is its own default.
        tokenizer: Of the same id.
        id: As given: a shipped model, a Hugging Face id, or a directory.
        fingerprint: `fingerprint(model)`; of a packed checkpoint the digest of its files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    id: str
    fingerprint: str


def load_model(
    id: str,  # noqa: A002 - the field's word, as in `model.id` of a TOML file
    *,
    task: str = "causal-lm",
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
) -> LoadedModel:
    """The model and tokenizer of an id, in eval mode, ready to be given a plan.

    Args:
        id: "mpq/tiny-llama" (ships with mpq, needs no network), a Hugging Face id, or a directory.
        task: "causal-lm" or "classification".
        dtype: "float32", "bfloat16" or "float16"; the weights are loaded in it.
        device: "cpu", "cuda", "cuda:1", … ; "auto" is cuda where there is one, else cpu.
        revision: Branch, tag or commit of a Hugging Face id.

    Raises:
        ModelError: No such model, task, dtype or device, or a model that is already quantised.
    """
    _refuse_unknown("task", task, TASKS)
    _refuse_unknown("dtype", dtype, DTYPES)
    place = place_of(device)
    source = str(SHIPPED_MODELS.get(id, id))
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if id in SHIPPED_MODELS:
        options["local_files_only"] = True
    try:
        config = AutoConfig.from_pretrained(source, **options)
        refuse_quantized(config, id)
        model, report = TASKS[task].from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except ModelError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"no model can be loaded from {id!r} for the task {task!r}: {_first_line(error)}. "
            "Give a Hugging Face id (owner/name), a directory with config.json, weights and "
            f"tokenizer, or {', '.join(SHIPPED_MODELS)}, which ships with mpq"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ModelError(
            f"{id!r} has no weights for {missing}, which {type(model).__name__} would draw at "
            f"random; it was trained for another task than {task!r}"
        )
    model = model.eval().to(place)
    return LoadedModel(model=model, tokenizer=tokenizer, id=id, fingerprint=fingerprint(model))


def stored_dtype(id: str) -> str:  # noqa: A002 - the field's word, as in load_model
    """The dtype of a model's files as its config names it; "float32" where it names none of ours.

    Raises:
        ModelError: There is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(str(SHIPPED_MODELS.get(id, id)))
    except (OSError, ValueError) as error:
        raise ModelError(f"no model has the id {id!r}: {_first_line(error)}") from error
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def refuse_quantized(config: Any, name: str) -> None:
    """Nothing comes back; a config of an already quantised model is refused.

    Raises:
        ModelError: The config, or one of its sub-configs, has a `quantization_config`.
    """
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    for part in parts:
        quantization = getattr(part, "quantization_config", None)
        if quantization:
            method = (
                quantization.get("quant_method")
                if isinstance(quantization, dict)
                else getattr(quantization, "quant_method", None)
            )
            way_out = "Load the model that it was made from"
            if method == "mpq":
                way_out += ", or run this one: mpq.load"
            raise ModelError(
                f"{name!r} is already quantised ({getattr(method, 'value', method)}); mpq gives "
                f"formats to full-precision weights. {way_out}"
            )


def fingerprint(model: torch.nn.Module) -> str:
    """Hex sha256 over the names, shapes, dtypes and bytes of every tensor in the state dict."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _refuse_unknown(what: str, value: str, known: dict[str, Any]) -> None:
    if value not in known:
        raise ModelError(f"{what} must be one of {', '.join(known)}; {value!r} is none of them")


def place_of(name: str) -> torch.device:
    """The device of this name; of "auto" cuda where there is one, else the CPU.

    Raises:
        ModelError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(
            f"device must be auto, cpu, cuda or cuda:<n>; {name!r} is none"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for, but torch sees no cuda; use auto or cpu")
    return device


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
