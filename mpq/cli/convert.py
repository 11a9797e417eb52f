"""The program `mpq-convert`: realises a plan as a packed checkpoint, by GPTQ or rounding."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.cli.console import add_log_flags, run_program, set_up_logging
from mpq.cli.convert_exports import EXPORTS
from mpq.cli.convert_writing import UNFINISHED
from mpq.errors import RunError

if TYPE_CHECKING:
    from mpq.cli.convert_inputs import Subject
    from mpq.plans.plan import Plan

EXAMPLE = """\
examples:
  mpq-convert runs/tiny_llama/plans/best.toml --out checkpoints/tiny
      a plan that mpq-search found; model and text are its run's
  mpq-convert --format int4-g128 --model Qwen/Qwen3-0.6B --dtype bfloat16 --text notes.txt \\
      --out checkpoints/qwen --export compressed-tensors
      every weight in one format, for transformers and vLLM too
  mpq-convert --candidate-formats int4-g64,int3-g64,int2-g64 --target-bits 3.5 \\
      --out checkpoints/mixed
      formats assigned by what GPTQ loses in them

The directory holds config.json, packed safetensors, tokenizer, report.json and report.csv;
mpq.load(DIR) gives the model. An interrupted conversion goes on with the same command."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mpq-convert`."""
    parser = argparse.ArgumentParser(
        prog="mpq-convert",
        description="Realises a plan as a packed checkpoint, by GPTQ or by rounding to nearest.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser)
    _add_text(parser)
    _add_how(parser)
    add_log_flags(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("plan", nargs="?", type=Path, metavar="PLAN.toml", help="which format each site gets")
    add("--format", metavar="FORMAT", help="in place of a plan: every weight but head and "
        "embeddings gets this one")  # fmt: skip
    add("--candidate-formats", type=_comma_list, metavar="F,F,…", help="in place of a plan: "
        "assigned by what GPTQ loses in them; a threshold takes them in order")  # fmt: skip
    add("--target-bits", type=float, metavar="BITS", help="mean bits a weight that the "
        "candidates may take, scales and all counted")  # fmt: skip
    add("--loss-threshold", type=float, metavar="LOSS", help="the first candidate that loses "
        "less than this a weight, else the last")  # fmt: skip
    add("--relative-loss", action="store_true", default=None, help="compare losses as shares of "
        "each layer's output energy")  # fmt: skip
    add("--profile", type=Path, metavar="TABLE.csv", help="count a weight by its damage in this "
        "table of mpq-profile sensitivity, times the share of rounding's loss "
        "that GPTQ leaves")  # fmt: skip
    add("--tie", choices=("fused", "none"), help="whether weights that engines "
        "fuse (q, k, v; gate, up) take one candidate (default: fused)")  # fmt: skip
    add("--model", metavar="ID", help="Hugging Face id or directory (default: the plan's, else "
        "mpq/tiny-llama)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the loaded model "
        "(default: that of the plan's run, else of the files, whose weights are then read as "
        "they are needed)")  # fmt: skip
    add("--device", help="where blocks are worked on, one at a time: auto, cpu, cuda, cuda:1 "
        "(default: auto)")  # fmt: skip
    add("--allow-other-model", action="store_true", help="take a plan that was made for other "
        "weights")  # fmt: skip
    add("--out", type=Path, metavar="DIR", required=True, help="the checkpoint's directory")
    add("--export", action="append", default=[], choices=EXPORTS, help="also write DIR/NAME, "
        "which other engines load; can be given twice")  # fmt: skip


def _add_text(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--source", choices=("builtin", "wikitext2"), help="default: builtin")
    text.add_argument("--text", type=Path, metavar="FILE", help='a .txt, or a .jsonl with "text"')
    add("--heldout-text", type=Path, metavar="FILE", help="another text, which is only judged")
    add("--generate", action="store_true", help="calibrate on windows that the model writes")
    add("--tokens", type=int, default=8192, help="for calibration (default: 8192)")
    add("--heldout-tokens", type=int, default=8192, help="for the perplexity before and after; "
        "0 for none (default: 8192)")  # fmt: skip
    add("--window", type=int, help="tokens a window (default: 128)")
    add("--seed", type=int, default=0, help="of the windows (default: 0)")


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", choices=("gptq", "rtn"), default="gptq", help="default: gptq")
    add("--act-order", action=argparse.BooleanOptionalAction, help="solve columns by falling "
        "diagonal of H (default: yes for gptq)")  # fmt: skip
    add("--groups", choices=("static", "stale", "exact"), default="static", help="when the grid "
        "of a group is chosen: from the given weight, or on reaching it, from weights without or "
        "with the running batch's updates (default: static)")  # fmt: skip
    add("--grid", choices=("absmax", "mse"), help="the format's own range, or the shrunk one "
        "of least error (default: mse for gptq, absmax for rtn)")  # fmt: skip
    add("--damping", type=float, help="share of H's mean diagonal that is added "
        "to it, tenfold where that fails (default: 0.01)")  # fmt: skip
    add("--no-true-sequential", dest="true_sequential", action="store_false", default=None,
        help="solve all weights of a block on one pass")  # fmt: skip
    add("--bias-correction", action="store_true", help="biases make up for the mean error of "
        "their layer's output")  # fmt: skip
    add("--batch-size", type=int, default=4, help="windows in one pass (default: 4)")
    add("--activations", choices=("memory", "disk"), default="memory", help="where hidden states "
        "wait between blocks (default: memory)")  # fmt: skip


def _comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """The program's exit code; see `console`."""
    args = build_parser().parse_args(argv)
    set_up_logging(args.log_level)
    return run_program(lambda: convert(args))


def convert(args: argparse.Namespace) -> None:
    """Converts, or goes on with, what the arguments ask for; writes exports; prints the report.

    Raises:
        MpqError: The plan, the model, the text or the directory do not fit.
    """
    from mpq.cli.convert_exports import export_all, lookup_tables
    from mpq.cli.convert_inputs import check_plan_source, load_subject
    from mpq.cli.convert_report import print_report
    from mpq.cli.convert_writing import is_finished, refuse_foreign, report_of

    check_plan_source(args)
    refuse_foreign(args.out, UNFINISHED)
    subject = load_subject(args)
    settings = settings_of(args, subject)
    try:
        if not is_finished(args.out, settings):
            plan, losses = plan_of(args, subject, settings)
            write(args, subject, plan, settings, losses)
        shutil.rmtree(args.out / UNFINISHED, ignore_errors=True)
        export_all(args.out, args.export, lookup_tables(subject.loaded.model))
    except OSError as error:
        raise RunError(
            f"{args.out} cannot be written: {error}. Make room, or choose another directory; the "
            "same command goes on with the blocks that are done"
        ) from error
    print_report(args.out, report_of(args.out), args.export)


def settings_of(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """Whatever the tensors depend on, as plain values."""
    from importlib.metadata import version

    from mpq import __version__

    walk = asdict(subject.options)
    return {
        "model": subject.loaded.id,
        "fingerprint": subject.loaded.fingerprint,
        "plan": None if args.plan is None else args.plan.read_text(encoding="utf-8"),
        "format": args.format,
        "candidates": {
            name: _plain(getattr(args, name))
            for name in (
                "candidate_formats",
                "target_bits",
                "loss_threshold",
                "relative_loss",
                "profile",
                "tie",
            )
        },
        "solver": walk.pop("solver"),
        "walk": {key: walk[key] for key in ("true_sequential", "bias_correction", "batch_size")},
        "text": subject.text,
        "heldout": subject.heldout_text,
        "device": subject.device.type,
        "versions": {
            "mpq": __version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def plan_of(
    args: argparse.Namespace, subject: Subject, settings: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:
    """The plan that is given or assigned, and the losses that it was assigned by.

    Raises:
        MpqError: It does not fit the model, or keeps no budget.
    """
    from mpq.cli.convert_candidates import assigned_plan
    from mpq.cli.convert_inputs import given_plan

    if args.candidate_formats is None:
        return given_plan(args, subject), {}
    return assigned_plan(args, subject, args.out / UNFINISHED, settings)


def write(
    args: argparse.Namespace,
    subject: Subject,
    plan: Plan,
    settings: dict[str, Any],
    losses: dict[str, Any],
) -> None:
    """Converts block by block, then writes the checkpoint and its report.

    Raises:
        MpqError: The plan or the directory do not fit; a weight or an activation is not finite.
    """
    from mpq.cli.convert_exports import refuse_inexpressible
    from mpq.cli.convert_writing import write_directory
    from mpq.cli.profile_inputs import shown_progress
    from mpq.convert.conversion import prepare
    from mpq.convert.finished import open_finished
    from mpq.convert.walk import walk

    conversion = prepare(
        subject.loaded.model,
        plan,
        subject.calibration,
        subject.heldout,
        options=subject.options,
        device=subject.device,
    )
    refuse_inexpressible(conversion, args.export)
    folder = args.out / UNFINISHED
    # Blocks depend on no held-out text, and another plan has blocks of its own.
    kept = {key: value for key, value in settings.items() if key not in ("heldout", "candidates")}
    finished = open_finished(folder / f"blocks-{plan.digest[:16]}", kept)
    with shown_progress() as progress:
        heldout = walk(conversion, finished, progress)
    write_directory(args.out, subject, conversion, finished, heldout, settings, losses)
