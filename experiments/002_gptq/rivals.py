"""Weights as another tool quantises them, on given calibration windows, for one judge of all.

Run by the python of that tool's own environment (the three cannot share one); nothing of mpq is
imported. Needs the tool, and what it brings: torch, transformers, safetensors, numpy.

    python rivals.py --tool gptqmodel --model DIR --tokens windows.npy --format int4-g128 --out OUT

`--tokens` holds the windows, int64 `[windows, tokens]` (numpy.save), passed to the tool as they
are, in their order, one window a batch (auto-round shuffles: it draws windows for each step).
Only linear layers of decoder blocks are quantised; embeddings and lm_head are left alone.
GPTQModel wants GPTQMODEL_CPU_WORKERS=2 on few cores, and leaves logs/ where it is run.

OUT/weights.safetensors holds `<module>.weight` of every layer that the tool quantised, and no
other tensor: float32 `[out, in]`, columns in the order of the model, the values that the stored
codes and scales read back as. Tools that decode in bfloat16 have rounded them to bfloat16 already.
A judge copies them over the model's own and measures as usual. OUT/record.json says what
was run: versions, settings, seconds, the rule of the scales, and bits with metadata.
"""

import argparse
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = ("torch", "transformers", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of a tool; None: it has no such setting.

    Attributes:
        model: Directory of the model.
        bits: Of a code.
        group: Weights that share a scale; -1: a row.
        act_order: "off"; "on": columns by descending diag(H); "group-aware": GPTQModel's own.
        groups: Whose range a group's scale is of: "static", the original weight; "updated", the
            weight when the sweep gets there.
        damping: Share of mean(diag H) that is added to the diagonal.
        iterations: Of auto-round, a block.
        true_sequential: Whether a layer's inputs come through the layers quantised before it in
            its block.
    """

    model: str
    bits: int
    group: int
    symmetric: bool
    act_order: str | None
    groups: str | None
    damping: float | None
    dtype: str
    iterations: int | None
    true_sequential: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """What is known of a tool, and how it is run.

    Attributes:
        quantize: Job and windows -> name of a layer -> its weight as it reads back.
        settings: Field of `Job` that it has a say in -> words it knows, the default first.
        scale_rule: How the scale of a symmetric group comes about; b bits, largest magnitude max.
        scale_dtype: Of a stored scale; "model": that of the model.
    """

    quantize: Callable[[Job, Tensor], dict[str, Tensor]]
    settings: dict[str, tuple[object, ...]]
    scale_rule: str
    scale_dtype: str


def quantize_llmcompressor(job: Job, windows: Tensor) -> dict[str, Tensor]:
    """Layer -> weight of llm-compressor's GPTQModifier."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    grouped = {"strategy": "group", "group_size": job.group}
    shared = grouped if job.group > 0 else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=job.bits, type="int", symmetric=job.symmetric, **shared)
    modifier = GPTQModifier(
        config_groups={"linear": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=["lm_head"],
        dampening_frac=job.damping,
        actorder={"on": "static", "off": None}[job.act_order],
    )
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in windows]
    oneshot(
        model=model,
        dataset=DataLoader(batches, batch_size=1, shuffle=False),
        recipe=modifier,
        pipeline="sequential",
        sequential_targets=["Linear"] if job.true_sequential else None,
    )
    layers = model.named_modules()
    return {
        name: layer.weight.detach() for name, layer in layers if hasattr(layer, "weight_scale")
    }


def quantize_auto_round(job: Job, windows: Tensor) -> dict[str, Tensor]:
    """Layer -> weight of auto-round (rounding tuned by signed gradients, a block at a time)."""
    from auto_round import AutoRound

    tool = AutoRound(
        AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)),
        tokenizer=AutoTokenizer.from_pretrained(job.model),
        bits=job.bits,
        group_size=job.group,
        sym=job.symmetric,
        iters=job.iterations,
        nsamples=len(windows),
        seqlen=windows.shape[1],
        batch_size=min(8, len(windows)),
        dataset=list(windows.split(1)),
        device_map="cpu",
        enable_torch_compile=False,
    )
    model, _ = tool.quantize()
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and getattr(module, "bits", 16) < 16
    }


def quantize_gptqmodel(job: Job, windows: Tensor) -> dict[str, Tensor]:
    """Layer -> weight of GPTQModel, read back from the checkpoint that it saves."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=job.bits,
        group_size=job.group,
        sym=job.symmetric,
        desc_act=job.act_order == "on",
        act_group_aware=job.act_order == "group-aware",
        static_groups=job.groups == "static",
        damp_percent=job.damping,
        true_sequential=job.true_sequential,
        format="gptq_v2",
        device="cpu",
    )
    model = GPTQModel.load(job.model, config, dtype=getattr(torch, job.dtype))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
    model.quantize(rows, batch_size=1, calibration_sort=None, backend=BACKEND.TORCH)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return read_gptq_v2(Path(folder), job.bits)


def read_gptq_v2(folder: Path, bits: int) -> dict[str, Tensor]:
    """Layer -> float32 `[out, in]` of every packed layer of a checkpoint in GPTQ's second layout.

    Codes `[in, out]` are packed along `in`, zero points `[groups, out]` along `out`.
    """
    tensors = {
        name: tensor
        for shard in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(shard).items()
    }
    weights = {}
    for name in [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]:
        group_of_row = tensors[f"{name}.g_idx"].long()
        codes = unpack_words(tensors[f"{name}.qweight"], bits)
        zeros = unpack_words(tensors[f"{name}.qzeros"].T, bits).T
        scales = tensors[f"{name}.scales"].float()
        weights[name] = ((codes - zeros[group_of_row]) * scales[group_of_row]).T
    return weights


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """int32 `[32 words / bits, N]`: numbers of so many bits that lie in int32 words `[words, N]`.

    A column is one string of bits, the lowest first; a number may straddle two words.
    """
    shifts = torch.arange(32)[None, :, None]
    string = ((words[:, None, :].long() >> shifts) & 1).flatten(0, 1)
    powers = (1 << torch.arange(bits))[None, :, None]
    return (string.unflatten(0, (-1, bits)) * powers).sum(dim=1)


GPTQ_SCALE = "2 max / (2^b - 1), codes -2^(b-1) .. 2^(b-1)-1: the largest weight may be clipped"
GPTQ: dict[str, tuple[object, ...]] = {"damping": (0.01,), "true_sequential": (True, False)}
TOOLS = {
    "llmcompressor": Tool(
        quantize=quantize_llmcompressor,
        settings=GPTQ | {"act_order": ("on", "off"), "groups": ("static",)},
        scale_rule=GPTQ_SCALE,
        scale_dtype="model",
    ),
    "gptqmodel": Tool(
        quantize=quantize_gptqmodel,
        settings=GPTQ
        | {"act_order": ("group-aware", "off", "on"), "groups": ("updated", "static")},
        scale_rule=GPTQ_SCALE,
        scale_dtype="float16",
    ),
    "auto-round": Tool(
        quantize=quantize_auto_round,
        settings={"iterations": (200,)},
        scale_rule="-w / 2^(b-1), w the weight of largest magnitude with its sign, shrunk by a "
        "tuned factor; codes -2^(b-1) .. 2^(b-1)-1",
        scale_dtype="float16",
    ),
}


def storage(job: Job, tool: str, weights: dict[str, Tensor]) -> dict[str, float]:
    """Bits of metadata a group and a column, and all stored bits over the number of weights.

    The zero points of symmetric groups and the `g_idx` of unscattered ones, which GPTQ's layout
    stores too, are not counted: no reader needs them.
    """
    stored = job.dtype if TOOLS[tool].scale_dtype == "model" else TOOLS[tool].scale_dtype
    group_bits = torch.finfo(getattr(torch, stored)).bits + (0 if job.symmetric else job.bits)
    column_bits = 32 * ((job.act_order, job.groups) == ("on", "updated"))
    bits = numel = 0
    for weight in weights.values():
        rows, columns = weight.shape
        groups = 1 if job.group < 0 else -(-columns // job.group)
        bits += weight.numel() * job.bits + rows * groups * group_bits + columns * column_bits
        numel += weight.numel()
    return {"group_bits": group_bits, "column_bits": column_bits, "bits_a_weight": bits / numel}


def parse() -> tuple[str, Job, Path, Path]:
    """Tool, job, file of windows and directory to write; exits on what the tool does not have."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tool", required=True, choices=TOOLS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True, type=Path)
    parser.add_argument("--format", required=True, help="int<bits>[a][-g<group>], a: zero points")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--act-order", choices=("off", "on", "group-aware"))
    parser.add_argument("--groups", choices=("static", "updated"))
    parser.add_argument("--damping", type=float)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--true-sequential", action=argparse.BooleanOptionalAction)
    given = vars(parser.parse_args())
    name, tokens, out = (given.pop(key) for key in ("tool", "tokens", "out"))
    parts = re.fullmatch(r"int([2-8])(a?)(?:-g(\d+))?", given.pop("format"))
    if parts is None:
        parser.error("--format is int<bits>[a][-g<group>], such as int4-g128")
    for key in ("act_order", "groups", "damping", "iterations", "true_sequential"):
        known = TOOLS[name].settings.get(key, ())
        if given[key] is None:
            given[key] = known[0] if known else None
        elif not known or (isinstance(given[key], str) and given[key] not in known):
            parser.error(f"{name} has {known or 'nothing'} for {key}, not {given[key]}")
    bits, asymmetric, group = parts.groups()
    grid = {"bits": int(bits), "group": int(group or -1), "symmetric": not asymmetric}
    return name, Job(**given, **grid), tokens, out


def main() -> None:
    """Runs a tool and writes its weights and a record."""
    name, job, tokens, out = parse()
    out.mkdir(parents=True, exist_ok=True)
    windows = torch.from_numpy(np.load(tokens))
    torch.manual_seed(0)
    began, cpu_began = time.perf_counter(), time.process_time()
    weights = TOOLS[name].quantize(job, windows)
    record = {
        "tool": name,
        "versions": {package: version(package) for package in (name, *PACKAGES)},
        "settings": {key: value for key, value in asdict(job).items() if value is not None},
        "windows": list(windows.shape),
        "windows_sha256": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "scale_rule": TOOLS[name].scale_rule,
        "storage": storage(job, name, weights),
        "num_layers": len(weights),
    }
    named = {f"{layer}.weight": weight.float().contiguous() for layer, weight in weights.items()}
    save_file(named, out / "weights.safetensors")
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {len(weights)} layers, {record['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
