"""What `mpq-convert` works on: the model, the plan, the text, and how, from its flags."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.cli.convert_writing import UNFINISHED
from mpq.cli.profile_inputs import DEFAULT_MODEL
from mpq.errors import ConfigError, PlanError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mpq.config import SearchConfig
    from mpq.convert.block import WalkOptions
    from mpq.modeling.loading import LoadedModel
    from mpq.plans.plan import Plan

PLAN_SOURCES = "a plan's file, --format, or --candidate-formats"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is converted.

    Attributes:
        config: Model and text, resolved.
        loaded: The model, on the CPU.
        calibration: Token ids [N, T].
        heldout: Token ids [M, T] that are only judged; None for none.
        text: What identifies the calibration: source and hash.
        heldout_text: The same of the held-out windows; empty where there are none.
        options: How the walk goes.
        device: Where blocks are worked on.
    """

    config: SearchConfig
    loaded: LoadedModel
    calibration: Tensor
    heldout: Tensor | None
    text: dict[str, str]
    heldout_text: dict[str, str]
    options: WalkOptions
    device: torch.device


def read_config(args: argparse.Namespace) -> SearchConfig:
    """Model and text as the flags name them, or as the run has them that the plan lies in.

    Raises:
        ConfigError: Lists every fault of the flags.
    """
    from mpq.config import search_config
    from mpq.modeling.loading import stored_dtype

    table = _of_run(args.plan)
    run = table.get("data", {})
    window = run.get("window", 128) if args.window is None else args.window
    has_own_text = args.source is not None or args.text is not None
    data: dict[str, Any] = {} if has_own_text else dict(run)
    # What a search looked at stays out of the held-out text, where both come from one stream.
    searched = run.get("calibration_tokens", 0) + run.get("search_tokens", 0)
    data |= {
        "window": window,
        "search_tokens": max(searched // window, 1) * window if window > 0 else window,
        "calibration_tokens": window if args.generate else args.tokens,
        "heldout_tokens": args.heldout_tokens or window,
    }
    table["data"] = data
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
    if "dtype" not in model:
        model["dtype"] = stored_dtype(model["id"])
    if model.get("task", "causal-lm") != "causal-lm":
        raise ConfigError(
            f"{args.plan} belongs to a run of the task {model['task']!r}, and a conversion is "
            "calibrated on windows of text: give --model and a text of its own"
        )
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
            "source": "generated" if args.generate else splits.calibration.source,
            "sha256": made_of,
        },
        heldout_text={"source": splits.heldout.source, "sha256": splits.heldout.sha256}
        if args.heldout_tokens
        else {},
        options=options,
        device=device,
    )


def _generated(
    args: argparse.Namespace, config: SearchConfig, loaded: LoadedModel
) -> tuple[Tensor, str]:
    """Windows that the model writes; they are kept, since writing them takes long."""
    from mpq.cli.convert_writing import kept_windows
    from mpq.cli.profile_inputs import shown_progress
    from mpq.data.draw import sha256
    from mpq.modeling.generation import generate_windows

    window = config.data.window
    if args.tokens % window:
        raise ConfigError(f"--tokens is a multiple of the window, {window}; given {args.tokens}")
    made_by = {"model": loaded.fingerprint, "window": window, "tokens": args.tokens,
               "seed": args.seed}  # fmt: skip
    count = args.tokens // window

    def write() -> Tensor:
        with shown_progress() as progress:
            return generate_windows(
                loaded.model, loaded.tokenizer, count, window, seed=args.seed, progress=progress
            )

    tokens = kept_windows(args.out, made_by, write)
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
    folder = Path(args.out) / UNFINISHED / "activations" if args.activations == "disk" else None
    return WalkOptions(
        solver=SolverOptions(
            method=args.method,
            act_order=is_solved if args.act_order is None else args.act_order,
            groups=args.groups,
            grid=args.grid or ("mse" if is_solved else "absmax"),
            damping=0.01 if args.damping is None else args.damping,
        ),
        true_sequential=args.true_sequential is not False,
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
    if args.profile is not None and args.relative_loss:
        raise ConfigError(
            "losses are weighed by --profile or --relative-loss; give one of the two"
        )
    _refuse_idle_flags(args)
    if args.plan is not None:
        _require_plan(args.plan)


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """Refuses flags that would change nothing."""
    uses = (
        ("--relative-loss", args.relative_loss, args.target_bits is not None, "--target-bits"),
        ("--profile", args.profile, args.target_bits is not None, "--target-bits"),
        ("--tie", args.tie, args.candidate_formats is not None, "--candidate-formats"),
        ("--damping", args.damping, args.method == "gptq", "--method gptq"),
        ("--no-true-sequential", args.true_sequential is False or None, args.method == "gptq",
         "--method gptq"),
        ("--allow-other-model", args.allow_other_model or None, args.plan is not None, "a plan"),
    )  # fmt: skip
    idle = [f"{flag} goes with {use}" for flag, given, has_use, use in uses
            if given is not None and not has_use]  # fmt: skip
    if idle:
        raise ConfigError("; ".join(idle) + ": leave it out")


def _require_plan(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: a plan is a readable TOML file: {error}") from error


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
        return replace(plan, model=loaded.id, fingerprint=loaded.fingerprint)
    every = sites(loaded.model, lm_head=True, embeddings=True, bias=True, output=True)
    plan = read_plan(
        args.plan,
        every,
        fingerprint=loaded.fingerprint,
        allow_other_model=args.allow_other_model,
    )
    return replace(plan, model=loaded.id, fingerprint=loaded.fingerprint)
