"""Measures mixed plans against uniform ones of the same cost, on the model that ships with mpq.

    python experiments/002_against_uniform/run.py [--out DIR]

Runs (or resumes) the searches of `SEARCHES` and writes `results.json` and `tables.md` beside this
file, from the summaries of their run directories. README.md says what the numbers mean.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpq.cli.search import main as search

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "search_configs"
SEARCHES = {
    "weights only": CONFIGS / "tiny_llama.toml",
    "weights and activations": CONFIGS / "tiny_llama_w_a.toml",
}
PROVENANCE = ("model", "model_fingerprint", "data_sha256", "seed", "python", "versions")
COLUMNS = ("at the cost of", "bits", "uniform", "allocation", "search", "returned", "margin")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all searches and writes both files; the exit code of the first search that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the runs lie")
    arguments = parser.parse_args(argv)
    results = {}
    for title, config in SEARCHES.items():
        folder = arguments.out / config.stem
        code = search([str(config), "--out", str(folder)])
        if code:
            return code
        results[title] = result_of(config.name, folder)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    tables = [f"### {title}\n\n{table_of(result)}" for title, result in results.items()]
    (HERE / "tables.md").write_text("\n".join(tables))
    return 0


def result_of(config: str, folder: Path) -> dict[str, Any]:
    """What is kept of a run: its config's name, versions, counts and comparisons."""
    summary = json.loads((folder / "summary.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    kept = {key: provenance[key] for key in PROVENANCE}
    return {"config": config, "provenance": kept} | {
        key: summary[key]
        for key in ("trials", "by_source", "seconds", "forward_seconds", "objectives", "proof")
    }


def table_of(result: Mapping[str, Any]) -> str:
    """The comparisons as a Markdown table: held-out measure of each plan, margin over uniform."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for one in result["proof"]["comparisons"]:
        gain, uniform = one["gain_over_uniform"], one["uniform"]["mean"]
        cost = one["cost"]
        bits = f"{cost['weight_bits']:.3g}"
        if "activation_bits" in result["objectives"]:
            bits += f" + {cost['activation_bits']:.3g}"
        margin = f"{gain['mean'] / uniform:.1%} [{gain['low'] / uniform:.1%}, "
        margin += f"{gain['high'] / uniform:.1%}]"
        means = (f"{one[role]['mean']:.4g}" for role in ("uniform", "allocation", "found"))
        rows.append((one["anchor"], bits, *means, one["returned"], margin))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
