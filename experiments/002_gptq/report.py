"""What was measured, as results.json and tables.md."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpq.files import read_json, write_atomic, write_json

MB = 1e6


def write_report(runs: Path, results: Path) -> None:
    """Writes results.json and tables.md from every model's scores."""
    found = {
        folder.name: {
            "setting": read_json(folder / "setting.json"),
            "scores": read_json(folder / "scores.json"),
        }
        for folder in sorted(runs.iterdir())
        if (folder / "scores.json").is_file()
    }
    write_json(results / "results.json", found)
    parts = ["<!-- written by run.py report -->"]
    for name, one in found.items():
        parts += [f"# {name}", described(one["setting"]), table(rows_of(one["scores"]))]
    write_atomic(results / "tables.md", "\n\n".join(parts) + "\n")


def described(setting: Mapping[str, Any]) -> str:
    """One paragraph about windows and options."""
    (count, window), (judged, length) = setting["calibration"], setting["heldout"]
    options = ", ".join(f"{key} {value}" for key, value in setting["options"].items())
    return (
        f"{setting['model']}, {setting['dtype']}; calibrated on {count} windows of {window} "
        f"tokens, judged on {judged} of {length}. Solver: {options}."
    )


def rows_of(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row a score: bits, megabytes, perplexity, KL, and perplexity lost for each MB saved."""
    full = scores["full precision"]
    rows = []
    for name, score in sorted(scores.items(), key=lambda item: _kind(item[0])):
        lost = math.exp(score["loss"]) - math.exp(full["loss"])
        size = score.get("bytes")
        saved = None if size is None else (full["bytes"] - size) / MB
        rows.append(
            [
                name,
                "" if size is None else f"{score['bits']:.3f}",
                "" if size is None else f"{size / MB:.2f}",
                f"{math.exp(score['loss']):.3f}",
                f"{score['kl']:.4f}",
                f"{lost / saved:.4f}" if saved else "",
            ]
        )
    return rows


def _kind(name: str) -> int:
    """Where a score's row stands: formats, other ways of solving them, mixtures, plans, others."""
    words = name.split()
    if "plan" in words:
        return 3
    if words[0] in ("rtn", "gptq"):
        return 0 if len(words) == 2 else 1
    return {"full": 0, "mixed": 2}.get(words[0], 4)


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as Markdown."""
    head = ("what", "bits a weight", "MB", "perplexity", "KL", "perplexity lost a MB saved")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
