"""What `mpq-search --dry-run` prints: the space, the work ahead, the time and the memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpq.cli.console import print_table

if TYPE_CHECKING:
    from mpq.cli.search_wiring import Subject
    from mpq.search.space import Space


def print_dry_run(subject: Subject, folder: Path, at: Sequence[float] = ()) -> None:
    """Prints what a search would do; measures one forward pass, writes nothing.

    Args:
        subject: What would be searched.
        folder: Of the run.
        at: Costs at which plans are asked for once the trials are there.

    Raises:
        MpqError: The space, the budget or the objectives do not fit.
    """
    from mpq.cli.evaluation import Evaluation
    from mpq.cli.search_asked import asked_anchors
    from mpq.cli.search_wiring import load_functions, make_space, settings_of
    from mpq.search.asked import TRIES
    from mpq.search.objective import make_objectives
    from mpq.search.settings import anchors_of, check_space

    config = subject.config
    objectives = make_objectives(config.search.objectives)
    load_functions(objectives)
    space = make_space(subject, None)
    settings = settings_of(config)
    check_space(space, settings, objectives)
    anchors = anchors_of(space, settings, objectives)
    asked = asked_anchors(space, settings, objectives, at) if at else ()
    _print_groups(space)
    num_trials = settings.trials + settings.refine
    search, heldout = (
        Evaluation(subject, split) for split in (subject.splits.search, subject.splits.heldout)
    )
    widest = space.plan(tuple(int(n) - 1 for n in space.num_choices))
    last = min(search.batch_size, search.num_windows)
    search(widest, 0, last)  # fills the caches: what follows is what a later trial pays
    start = time.perf_counter()
    search(widest, 0, last)
    seconds = time.perf_counter() - start
    batches = math.ceil(search.num_windows / search.batch_size)
    heldout_batches = math.ceil(heldout.num_windows / heldout.batch_size)
    num_asked = (1 + TRIES) * len(asked)
    num_proofs = 3 * (len(anchors) + len(asked)) + config.prove.plans
    forwards = (num_trials + num_asked + 1) * batches + (num_proofs + 1) * heldout_batches
    upper = "at most " if len(settings.rungs) > 1 or asked else ""
    facts = {
        "run directory": str(folder),
        "model": f"{subject.loaded.id} on {subject.loaded.model.device}",
        "sites": f"{len(space.sites)}, {sum(len(g.sites) for g in space.groups)} searched in "
        f"{len(space.groups)} groups, {len(space.fixed)} fixed",
        "space": f"{config.space.mode}, {len(space.groups)} groups, about "
        f"10^{_log10_size(space):.0f} plans",
        "objectives": ", ".join(f"{o.direction} {o.name}" for o in objectives),
        "budget": ", ".join(f"{k} {v:g}" for k, v in settings.budget.items()) or "none",
        "compared at": ", ".join(anchor.name for anchor in anchors),
        "trials": f"{settings.trials} by {settings.sampler} (baselines included), then "
        f"{settings.refine} exchanges",
        "asked for": f"{', '.join(anchor.name for anchor in asked)}: at most {num_asked} plans",
        "forward passes": f"{upper}{forwards} batches of at most {search.batch_size} windows: "
        f"{batches} "
        f"a trial, {heldout_batches} for each of at most {num_proofs} proven plans",
        "profile": f"method {config.profile.method}, {_profile_work(subject)}",
        "time": f"about {forwards * seconds / 60:.1f} minutes of forward passes "
        f"({1000 * seconds:.0f} ms a batch, measured now), the profile comes on top",
        "memory": _memory(subject, search.num_windows),
    }
    if not asked:
        del facts["asked for"]
    print_table("dry run: nothing is written", ["", ""], [[k, v] for k, v in facts.items()],
                num_text_columns=2)  # fmt: skip


def _print_groups(space: Space) -> None:
    rows = [
        [
            group.name,
            str(len(group.sites)),
            f"{group.values:,}",
            " ".join(str(fmt) for fmt in group.candidates),
        ]
        for group in space.groups
    ]
    rows += [[name, "1", "", f"fixed at {fmt}"] for name, fmt in space.fixed.items()]
    print_table("groups", ["group", "sites", "values", "candidates"], rows)


def _log10_size(space: Space) -> float:
    return sum(math.log10(len(group.candidates)) for group in space.groups)


def _profile_work(subject: Subject) -> str:
    pairs = sum(len(formats) for formats in subject.candidates.values())
    windows = subject.splits.calibration
    count = len(windows.tokens) if hasattr(windows, "tokens") else len(windows.labels)
    if subject.config.profile.method == "kl":
        return f"{pairs} pairs, each at most one forward pass over {count} windows"
    passes = ""
    if subject.config.profile.method in ("shares", "first-order"):
        formats = {fmt for some in subject.candidates.values() for fmt in some}
        passes = f" for each of {len(formats)} formats"
    return f"{pairs} pairs from one forward and backward pass over each of {count} windows{passes}"


def _memory(subject: Subject, num_windows: int) -> str:
    """Where the memory goes, in GiB."""
    model = subject.loaded.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    data = subject.splits.search
    width = model.config.vocab_size if hasattr(data, "tokens") else 2
    length = data.tokens.shape[1] if hasattr(data, "tokens") else 1
    logits = min(4 * num_windows * length * width, 1 << 30)
    quantized = sum(
        math.prod(site.shape) * len(formats) * 4
        for site, formats in subject.candidates.items()
        if site.is_stored
    )
    cache = min(quantized, subject.cache.max_bytes)
    parts = {"weights": weights, "reference logits": logits, "quantised weights": cache}
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    return f"about {sum(parts.values()) / 2**30:.2f} GiB and the activations of a batch ({listed})"
