"""Prints tokens a second and memory of a packed checkpoint, resident and offloaded.

    python benchmarks/offload.py [directory ...] [--tokens 32] [--format int4-g128] [--device cpu]
    python benchmarks/offload.py --blocks 28 --hidden 3072 --tokens 4

Without a directory, mpq/tiny-llama is rounded to nearest in the format and written to a temporary
one; with `--blocks`, a Llama in bfloat16 of that many blocks of `--hidden` channels, whose weights
are random and in every block the same. It is written shard by shard, so that it may be larger than
the memory.

Each case runs in a process of its own. `loaded` and `peak` are private (anonymous) memory above
that before the checkpoint was opened; pages of its mapped files, which the system may take back,
stand under `mapped`. Beside them the parts of which an offloaded model's peak is made: a block
decoded, a block packed, and what lies outside of the blocks. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from machine import description
from private_memory import memory, peak_memory
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import mpq
from mpq.modeling.blockwise import blocks
from mpq.modeling.checkpoint import config_of, open_checkpoint, write_checkpoint
from mpq.modeling.packed import PackedWeight, with_tensors

SHIPPED = "mpq/tiny-llama"
PROMPT = 16
SHARD_BYTES = 2**28
COLUMNS = ("loaded", "peak", "mapped", "block", "packed", "outside")

Values = Callable[[Tensor], Tensor]
"""The values of a parameter."""


def main() -> None:
    """Measures every directory twice and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="*")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--format", default="int4-g128")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--case", choices=("resident", "offloaded"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measured(arguments)))
        return
    print(f"{description()}\n{arguments.device}, {arguments.tokens} tokens after {PROMPT}; MB")
    print(f"{'checkpoint':<28}{'case':<11}{'tokens/s':>9}", end="")
    print("".join(f"{column:>9}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        for directory in arguments.directories or [written(Path(folder), arguments)]:
            for case in ("resident", "offloaded"):
                print_case(str(directory), case, arguments)


def print_case(directory: str, case: str, arguments: argparse.Namespace) -> None:
    """One row, measured by another process."""
    command = [sys.executable, __file__, directory, "--case", case, "--device", arguments.device]
    command += ["--tokens", str(arguments.tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    cells = "".join(f"{row[column] / 1e6:>9.0f}" for column in COLUMNS)
    print(f"{Path(directory).name:<28}{case:<11}{row['speed']:>9.2f}{cells}", flush=True)


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of greedy generation, and bytes of memory."""
    directory, count = arguments.directories[0], arguments.tokens
    before = memory()
    with peak_memory() as peak:
        is_offloaded = arguments.case == "offloaded"
        model = mpq.load(
            directory, device=arguments.device, offload=is_offloaded, verify=False
        ).model
        loaded = memory()
        prompt = torch.arange(3, 3 + PROMPT, device=model.device)[None]
        with torch.no_grad():
            # The first pass loads or compiles what decodes.
            model.generate(prompt, do_sample=False, max_new_tokens=1)
            start = time.perf_counter()
            model.generate(prompt, do_sample=False, max_new_tokens=count, min_new_tokens=count)
            seconds = time.perf_counter() - start
    return {
        "speed": count / seconds,
        "loaded": loaded["RssAnon"] - before["RssAnon"],
        "peak": peak["RssAnon"] - before["RssAnon"],
        "mapped": peak["RssFile"] - before["RssFile"],
        **parts(model, directory),
    }


def parts(model: PreTrainedModel, directory: str) -> dict[str, int]:
    """Bytes of the largest block, decoded and packed, and of what lies outside of the blocks."""
    checkpoint, found = open_checkpoint(directory, verify=False), blocks(model)
    inside = {id(p) for _, block in found for p in block.parameters()}
    packed = [
        sum(
            checkpoint.packed(site).num_bits // 8
            for site in checkpoint.packed_facts
            if site.startswith(f"{name}.")
        )
        for name, _ in found
    ]
    return {
        "block": max(sum(p.nbytes for p in block.parameters()) for _, block in found),
        "packed": max(packed),
        "outside": sum(p.nbytes for p in model.parameters() if id(p) not in inside),
    }


def written(folder: Path, arguments: argparse.Namespace) -> Path:
    """A checkpoint of the shipped model, or of a random one of the size asked for."""
    loaded = mpq.load_model(SHIPPED)
    path, model, twin, values = folder / "tiny-llama", loaded.model, loaded.model, own_values
    if arguments.blocks:
        path = folder / f"llama-{arguments.blocks}x{arguments.hidden}"
        with torch.device("meta"):
            model = LlamaForCausalLM(llama(arguments.blocks, arguments.hidden)).bfloat16()
        # Sites are found by a forward pass, which a model without memory cannot run.
        twin, values = LlamaForCausalLM(llama(arguments.blocks, 128)), random_values
    plan = mpq.uniform_plan(twin, arguments.format, roles=("weight",))
    loaded.tokenizer.save_pretrained(path)
    write_checkpoint(
        path,
        model_config=config_of(model),
        tensors=rounded(model, plan, values),
        plan=plan,
        max_shard_bytes=SHARD_BYTES,
    )
    return path


def rounded(
    model: PreTrainedModel, plan: mpq.Plan, values: Values
) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """A Llama's tensors, those of the plan packed, one by one; a tied tensor once."""
    done = set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        if name not in plan.formats:
            yield name, values(parameter)
        elif parameter.is_meta:
            alike = _packed_once(parameter.shape, parameter.dtype, str(plan.formats[name]))
            yield name, with_tensors(alike, torch.clone)  # a file holds no memory twice
        else:
            yield name, PackedWeight(encoded=mpq.encode(values(parameter), plan.formats[name]))


@cache
def _packed_once(shape: torch.Size, dtype: torch.dtype, text: str) -> PackedWeight:
    """Random values, packed once for all weights of a shape: it takes minutes a billion values."""
    x = random_values(torch.empty(shape, dtype=dtype, device="meta"))
    return PackedWeight(encoded=mpq.encode(x, text))


def llama(num_blocks: int, hidden: int) -> LlamaConfig:
    """The configuration of a Llama whose head is its table of embeddings."""
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 128 * 128,
        num_hidden_layers=num_blocks,
        num_attention_heads=max(1, hidden // 128),
        tie_word_embeddings=True,
    )


def own_values(parameter: Tensor) -> Tensor:
    """What the parameter holds."""
    return parameter.detach()


def random_values(parameter: Tensor) -> Tensor:
    """Normal values of a weight's usual size, for a shape always the same; ones for a norm."""
    if parameter.dim() == 1:
        return torch.ones(parameter.shape, dtype=parameter.dtype)
    seed = torch.Generator().manual_seed(0)
    values = torch.randn(parameter.shape, dtype=parameter.dtype, generator=seed)
    return values.mul_(parameter.shape[-1] ** -0.5)


if __name__ == "__main__":
    main()
