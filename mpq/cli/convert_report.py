"""What `mpq-convert` prints of a finished checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpq.cli.console import print_table
from mpq.cli.convert_exports import TOOL_PLANS

MIB = 2**20


def print_report(folder: Path, report: Mapping[str, Any], exported: Sequence[str]) -> None:
    """Prints formats, losses, bytes, perplexity and where everything lies."""
    print_table(
        "formats",
        ("format", "method", "tensors", "bits a value", "loss", "loss rounded", "ratio"),
        format_rows(report["tensors"]),
        num_text_columns=2,
    )
    for line in reasons(report["tensors"]):
        print(f"rounded to nearest: {line}")
    size = report["size"]
    print(
        f"size:        {size['before'] / MIB:.1f} -> {size['after'] / MIB:.1f} MiB, "
        f"{size['bits_per_value']:.3f} bits a converted value, metadata counted"
    )
    if report["heldout"] is not None:
        print(f"perplexity:  {_perplexity(report['heldout'])}")
    print(f"checkpoint:  {folder} (mpq.load)")
    made = ", ".join(f"{tool} {count}" for tool, count in report["tool_plans"].items() if count)
    if made:
        print(f"other tools: {folder / TOOL_PLANS} (sites that each can make: {made})")
    for name in exported:
        print(f"export:      {folder / name} (read back, the same values)")


def format_rows(tensors: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each pair of format and method: how many tensors, and what they lose in sum."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in tensors:
        groups.setdefault((row["format"], row["method"]), []).append(row)
    rows = []
    for (format, method), members in sorted(groups.items()):
        loss = sum(row["loss"] for row in members)
        rounded = sum(row["rtn_loss"] for row in members)
        bits = sum(row["num_bits"] for row in members) / sum(r["num_values"] for r in members)
        ratio = f"{loss / rounded:.3f}" if rounded else "-"
        counted = [str(len(members)), f"{bits:.3f}", f"{loss:.4g}", f"{rounded:.4g}", ratio]
        rows.append([format, method, *counted])
    return rows


def reasons(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each reason why tensors were rounded to nearest, with the first of them."""
    groups: dict[str, list[str]] = {}
    for row in tensors:
        if row["reason"]:
            groups.setdefault(row["reason"], []).append(row["site"])
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in groups.items()
    ]


def _perplexity(heldout: Mapping[str, Any]) -> str:
    shown = {
        key: "not finite" if heldout[key] is None else f"{heldout[key]:.4g}"
        for key in ("perplexity_before", "perplexity_after", "kl")
    }
    return (
        f"{shown['perplexity_before']} -> {shown['perplexity_after']} on "
        f"{heldout['num_tokens']} held-out tokens, KL {shown['kl']} nats a token"
    )
