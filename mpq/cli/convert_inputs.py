"""What `mpq-convert` works on: the model, the plan, the text, and how, from its flags."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mpq.config import SearchConfig
    from mpq.convert.block import WalkOptions
    from mpq.modeling.loading import LoadedModel
    from mpq.plans.plan import Plan

DEFAULT_MODEL = "mpq/tiny-llama"
PLAN_SOURCES = "a plan's file, --format, or --candidate-formats"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is converted.

    Attributes:
        config: Model and text, resolved.
        loaded: The model, on the CPU.
        calibration: Token ids [N, T].
        heldout: Token ids [M, T] that are only judged; None for none.
        text: What identifies both: source and hashes.
        options: How the walk goes.
        device: Where blocks are worked on.
    """

    config: SearchConfig
    loaded: LoadedModel
    calibration: Tensor
    heldout: Tensor | None
    text: dict[str, str]
    options: WalkOptions
    device: torch.device


def read_config(args: argparse.Namespace) -> SearchConfig:
    """Model and text as the flags name them, or as the run has them that the plan lies in.

    Raises:
        ConfigError: Lists every fault of the flags.
    """
    from mpq.config import search_config

    table = _of_run(args.plan)
    window = args.window or table.get("data", {}).get("window", 128)
    data = table.setdefault("data", {})
    data |= {"window": window, "search_tokens": window, "calibration_tokens": args.tokens}
    data["heldout_tokens"] = args.heldout_tokens or window
    if args.source is not None:
        data["source"] = args.source
    if args.text is not None:
        data |= {"source": "file", "path": str(args.text)}
    if args.heldout_text is not None:
        data["heldout_path"] = str(args.heldout_text)
    model = table.setdefault("model", {"id": DEFAULT_MODEL})
    for key, value in (("id", args.model), ("dtype", args.dtype)):
        if value is not None:
            model[key] = value
    # The model stays on the CPU; blocks visit the device one at a time. Nothing is searched, and a
    # space needs two candidates.
    model["device"] = "cpu"
    table |= {"space": {"formats": ["bf16", "fp32"]}, "search": {"seed": args.seed}}
    return search_config(table, where="command line")


def _of_run(plan: Path | None) -> dict[str, Any]:
    """`[model]` and `[data]` of the run in whose `plans/` a plan lies, else of the plan itself."""
    if plan is None or not plan.is_file():
        return {}
    from mpq.run import CONFIG, PLANS, read_toml

    config = plan.parent.parent / CONFIG
    if plan.parent.name == PLANS and config.is_file():
        run = read_toml(config)
        return {key: dict(run[key]) for key in ("model", "data") if key in run}
    try:
        model = tomllib.loads(plan.read_text(encoding="utf-8")).get("model")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}  # whoever reads the plan says what is wrong with it
    return {"model": {"id": model}} if model else {}


def load_subject(args: argparse.Namespace) -> Subject:
    """Model, text and options that the arguments ask for.

    Raises:
        MpqError: Whatever of it cannot be had as asked.
    """
    from mpq.cli.inputs import load_data_of, load_model_of
    from mpq.modeling.loading import place_of

    config = read_config(args)
    options = walk_options(args)
    device = place_of(args.device or "auto")
    loaded = load_model_of(config)
    splits: Any = load_data_of(config, loaded.tokenizer)
    calibration, made_of = splits.calibration.tokens, splits.calibration.sha256
    if args.generate:
        calibration, made_of = _generated(args, config, loaded)
    return Subject(
        config=config,
        loaded=loaded,
        calibration=calibration,
        heldout=splits.heldout.tokens if args.heldout_tokens else None,
        text={
            "calibration": "generated" if args.generate else splits.calibration.source,
            "calibration_sha256": made_of,
            "heldout": splits.heldout.source,
            "heldout_sha256": splits.heldout.sha256,
        },
        options=options,
        device=device,
    )


def _generated(
    args: argparse.Namespace, config: SearchConfig, loaded: LoadedModel
) -> tuple[Tensor, str]:
    from mpq.data.draw import sha256
    from mpq.modeling.generation import generate_windows

    window = config.data.window
    tokens = generate_windows(
        loaded.model, loaded.tokenizer, args.tokens // window, window, seed=args.seed
    )
    return tokens, sha256(tokens)


def walk_options(args: argparse.Namespace) -> WalkOptions:
    """How the walk goes.

    Raises:
        ConfigError: A number is out of its range.
    """
    from mpq.convert.block import WalkOptions
    from mpq.convert.solver import SolverOptions

    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is at least 1 window, not {args.batch_size}")
    is_solved = args.method == "gptq"
    folder = Path(args.out) / "unfinished" / "activations" if args.activations == "disk" else None
    return WalkOptions(
        solver=SolverOptions(
            method=args.method,
            act_order=is_solved if args.act_order is None else args.act_order,
            groups=args.groups,
            grid=args.grid or ("mse" if is_solved else "absmax"),
            damping=args.damping,
        ),
        true_sequential=args.true_sequential,
        bias_correction=args.bias_correction,
        batch_size=args.batch_size,
        activations=folder,
    )


def check_plan_source(args: argparse.Namespace) -> None:
    """Nothing comes back, where the arguments name one source of a plan, and what it needs.

    Raises:
        ConfigError: They name none or several, or a budget and a threshold, or neither.
    """
    given = [args.plan is not None, args.format is not None, args.candidate_formats is not None]
    if sum(given) != 1:
        raise ConfigError(f"give one of {PLAN_SOURCES}; {sum(given)} were given")
    rules = [args.target_bits is not None, args.loss_threshold is not None]
    if args.candidate_formats is not None and sum(rules) != 1:
        raise ConfigError(
            "--candidate-formats are assigned under a budget (--target-bits 3.25) or by a "
            f"threshold (--loss-threshold 1e-6); give one of the two, not {sum(rules)}"
        )
    if args.candidate_formats is None and any(rules):
        raise ConfigError("--target-bits and --loss-threshold go with --candidate-formats")
    if args.candidate_formats is not None and args.method == "rtn":
        raise ConfigError("--candidate-formats are compared by the loss of --method gptq")


def given_plan(args: argparse.Namespace, subject: Subject) -> Plan:
    """The plan of the file, or the one that gives every weight `--format`.

    Raises:
        PlanError: It does not fit the model.
        FormatError: It names no format.
    """
    from mpq.modeling.sites import sites
    from mpq.modeling.wrap import uniform_plan
    from mpq.plans.rules import read_plan

    loaded = subject.loaded
    if args.format is not None:
        plan = uniform_plan(loaded.model, args.format, roles=("weight",))
        return type(plan)(formats=plan.formats, model=loaded.id, fingerprint=loaded.fingerprint)
    every = sites(loaded.model, lm_head=True, embeddings=True, bias=True, output=True)
    return read_plan(
        args.plan,
        every,
        fingerprint=loaded.fingerprint,
        allow_other_model=args.allow_other_model,
    )
