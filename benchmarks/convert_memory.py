"""Prints the memory that a conversion takes as a model grows: by its blocks, and by their width.

    python benchmarks/convert_memory.py [--layers 4 8 16] [--widths 256 512] [--tokens 4096]

Models are Llamas of random weights in bfloat16 files, converted to int4-g128 by GPTQ, each in a
process of its own. `peak` is the largest private (anonymous) memory above that before the model
was opened; pages of the files that are mapped and can be taken back by the system do not count,
and stand beside it under `mapped`. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import description
from private_memory import memory, peak_memory
from transformers import LlamaConfig, LlamaForCausalLM

from mpq.convert.block import WalkOptions
from mpq.convert.conversion import prepare
from mpq.convert.finished import open_finished
from mpq.convert.walk import walk
from mpq.modeling.wrap import uniform_plan

WINDOW = 128
VOCABULARY = 512


def main() -> None:
    """Measures every size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model:
        print(json.dumps(measured(arguments.model, arguments.tokens)))
        return
    print(f"{description()}\n{arguments.tokens} tokens, MB")
    print(
        f"{'width':>6}{'blocks':>8}{'model':>9}{'block':>9}{'states':>9}{'Hessian':>9}"
        f"{'peak':>9}{'mapped':>9}"
    )
    for width in arguments.widths:
        for layers in arguments.layers:
            with tempfile.TemporaryDirectory() as folder:
                print_case(Path(folder), width, layers, arguments.tokens)


def print_case(folder: Path, width: int, layers: int, tokens: int) -> None:
    """One row, measured by another process."""
    write_model(folder, width, layers)
    command = [sys.executable, __file__, "--model", str(folder), "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    cells = [row[name] / 1e6 for name in ("model", "block", "states", "hessian", "peak", "mapped")]
    print(f"{width:>6}{layers:>8}" + "".join(f"{cell:>9.1f}" for cell in cells), flush=True)


def write_model(folder: Path, width: int, layers: int) -> None:
    """A Llama of random weights in bfloat16."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=WINDOW,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def measured(folder: str, tokens: int) -> dict[str, int]:
    """Bytes of the model and its parts, and the peak while it is converted."""
    windows = torch.randint(0, VOCABULARY, (tokens // WINDOW, WINDOW))
    before = memory()
    with tempfile.TemporaryDirectory() as work, peak_memory() as peak:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        plan = uniform_plan(model, "int4-g128", roles=("weight",))
        options = WalkOptions(batch_size=1)
        conversion = prepare(model, plan, windows, options=options, device=torch.device("cpu"))
        walk(conversion, open_finished(Path(work), {}), lambda *_: None)
        block = sum(p.nbytes for p in model.model.layers[0].parameters())
        whole = sum(p.nbytes for p in model.parameters())
    width = model.config.hidden_size
    return {
        "model": whole,
        "block": block,
        "states": tokens * width * 2,
        "hessian": (4 * width) ** 2 * 8,
        "peak": peak["RssAnon"] - before["RssAnon"],
        "mapped": peak["RssFile"] - before["RssFile"],
    }


if __name__ == "__main__":
    main()
