"""Prints tokens a second and peak memory of a packed checkpoint, resident and offloaded.

    python benchmarks/offload.py [directory ...] [--tokens 32] [--format int4-g128] [--device cpu]

Without a directory, mpq/tiny-llama is rounded to nearest in the format and written to a temporary
one. Each case runs in a process of its own, so that its peak is its own: `loaded` is the resident
set after imports and before the checkpoint is opened, `peak` the largest one up to the end. Pages
of mapped files that the system may take back count in both.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import description
from transformers import PreTrainedModel

import mpq
from mpq.modeling.checkpoint import config_of, write_checkpoint
from mpq.modeling.packed import PackedWeight
from mpq.modeling.sites import places

SHIPPED = "mpq/tiny-llama"
PROMPT = 16


def main() -> None:
    """Measures every directory twice and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="*")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--format", default="int4-g128")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", choices=("resident", "offloaded"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measured(arguments)))
        return
    print(f"{description()}\n{arguments.device}, {arguments.tokens} tokens after {PROMPT}")
    print(f"{'checkpoint':<40}{'case':<12}{'tokens/s':>10}{'loaded MB':>11}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for directory in arguments.directories or [shipped(Path(folder), arguments.format)]:
            for case in ("resident", "offloaded"):
                print_case(str(directory), case, arguments)


def print_case(directory: str, case: str, arguments: argparse.Namespace) -> None:
    """One row, measured by another process."""
    command = [sys.executable, __file__, directory, "--case", case, "--device", arguments.device]
    command += ["--tokens", str(arguments.tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{Path(directory).name:<40}{case:<12}{row['speed']:>10.1f}"
        f"{row['loaded']:>11.0f}{row['peak']:>9.0f}"
    )


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of greedy generation, and MB of memory."""
    loaded = resident_mb()
    model = mpq.load(
        arguments.directories[0],
        device=arguments.device,
        offload=arguments.case == "offloaded",
        verify=False,
    ).model
    prompt = torch.arange(3, 3 + PROMPT, device=model.device)[None]
    options = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens}
    with torch.no_grad():
        start = time.perf_counter()
        model.generate(prompt, do_sample=False, **options)
        seconds = time.perf_counter() - start
    return {"speed": arguments.tokens / seconds, "loaded": loaded, "peak": peak_mb()}


def resident_mb() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    """The most that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def shipped(folder: Path, text: str) -> Path:
    """A checkpoint of the shipped model, its weights rounded to nearest in a format."""
    loaded = mpq.load_model(SHIPPED)
    plan = mpq.uniform_plan(loaded.model, text, roles=("weight",))
    path = folder / f"tiny-llama-{text}"
    loaded.tokenizer.save_pretrained(path)
    write_checkpoint(
        path,
        model_config=config_of(loaded.model),
        tensors=rounded(loaded.model, plan).items(),
        plan=plan,
    )
    return path


def rounded(model: PreTrainedModel, plan: mpq.Plan) -> dict[str, torch.Tensor | PackedWeight]:
    """The model's tensors, those of the plan packed; a tied tensor once."""
    tensors: dict[str, torch.Tensor | PackedWeight] = {}
    packed = set()
    for place in places(model):
        name = place.site.name
        if place.site.is_stored and name in plan.formats:
            encoded = mpq.encode(place.parameter.detach(), plan.formats[name], place.site.axis)
            tensors[name] = PackedWeight(encoded=encoded)
            packed.add(id(place.parameter))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in packed:
            packed.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


if __name__ == "__main__":
    main()
