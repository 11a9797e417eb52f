"""Plans of ours and of other tools on the same twelve windows: KL and loss, side by side.

The windows are the first 12 x 512 tokens of WikiText-2's raw test file (bos and 511 tokens each),
all positions judged. They lie in the held-out part: no search looked at them.

The others' plans went through one quantiser, whose scales were not rounded. Ours are judged
twice: through that quantiser, beside them, and with the bfloat16 scales that they store.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import CODE_BITS, FULL_PRECISION_LOSS, PEERS, best_peer, least_kl
from searches import Job
from tables import Row

from mpq.cli.evaluation import TEACHER_SHARE, memory_bytes
from mpq.cli.inputs import load_model_of
from mpq.config import load_search_config
from mpq.cost import cost
from mpq.data.draw import sha256, token_ids
from mpq.errors import DataError
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale
from mpq.modeling.loading import LoadedModel
from mpq.modeling.scoring import Scorer
from mpq.modeling.sites import sites
from mpq.modeling.weights import WeightCache
from mpq.modeling.wrap import apply_plan, uniform_plan
from mpq.plans.plan import Plan
from mpq.run import collect_provenance, open_run, read_json, write_json
from mpq.search.prove import bootstrap_mean

NUM_WINDOWS, WINDOW = 12, 512
UNIFORM = ("int3-g128", "int4-g128", "int5-g128")
SCALE_BITS = 16 / 128
"""Stored bits a weight beside its code: one bfloat16 scale for 128."""

CACHE_BYTES = 2 << 30
PEER_COLUMNS = ("tool", "groups", *(f"{bits:g} code bits" for bits in CODE_BITS))
COLUMNS = ("code bits", "stored bits", "best of the others", "its KL", "its loss")
AS_STORED, UNROUNDED = "as stored", "scales unrounded"
"""How a plan is judged."""


def measure_rivals(
    out: Path,
    *,
    jobs: Sequence[Job],
    text: Path,
    num_windows: int = NUM_WINDOWS,
    window: int = WINDOW,
) -> dict[str, Any]:
    """The plans that the searches returned, and uniform ones, on the twelve windows.

    What was measured before is read from `out`/rivals.json.

    Args:
        out: Directory that holds the runs of the jobs.
        jobs: The searches, finished; all on one model.
        text: Text whose first windows are judged.
        num_windows: How many of them.
        window: Tokens a window, bos included.
    """
    config = load_search_config(jobs[0].config)
    loaded = load_model_of(config)
    tokens = first_windows(loaded, text.read_text(encoding="utf-8"), num_windows, window)
    judged = Judged(loaded, tokens, out / "rivals.json")
    rows = []
    for format_name in UNIFORM:
        plan = uniform_plan(loaded.model, format_name, roles=("weight",))
        rows.append({"search": "uniform", "returned": format_name} | judged.row(plan))
    for job in jobs:
        rows += [
            {"search": job.name, "target": target, "returned": one["returned"]}
            | {"tie": tie_of(job)}
            | judged.row(read_returned(out / job.name, one["plan"], loaded))
            for target, one in returned_at(out / job.name).items()
        ]
    return judged.write(rows)


def first_windows(loaded: LoadedModel, text: str, count: int, window: int) -> torch.Tensor:
    """int64 `[count, window]`: bos and the next tokens of the text, in its order.

    Raises:
        DataError: The text is too short, or the tokenizer has no bos token.
    """
    bos = loaded.tokenizer.bos_token_id
    ids = token_ids(loaded.tokenizer, text)[: count * (window - 1)]
    if bos is None or len(ids) < count * (window - 1):
        raise DataError(
            f"{count} windows are bos and {window - 1} tokens each; the text has {len(ids)} and "
            f"bos is {bos}"
        )
    rows = torch.tensor(ids, dtype=torch.int64).view(count, window - 1)
    return torch.cat([torch.full((count, 1), bos, dtype=torch.int64), rows], dim=1)


def returned_at(folder: Path) -> dict[float, Mapping[str, Any]]:
    """Target -> the comparison of a finished run whose plan costs the most within it."""
    comparisons = read_json(folder / "summary.json")["proof"]["comparisons"]
    found = {}
    for target in open_run(folder).config["search"]["targets"]:
        within = [one for one in comparisons if one["cost"]["weight_bits"] <= target + 1e-9]
        found[target] = max(within, key=lambda one: one["cost"]["weight_bits"])
    return found


def read_returned(folder: Path, plan: str, loaded: LoadedModel) -> Plan:
    """The plan of a run, checked against the model's weights."""
    found = sites(loaded.model)
    return open_run(folder).read_plan(Path(plan).stem, found, fingerprint=loaded.fingerprint)


def tie_of(job: Job) -> str:
    """Whether a search ties what engines fuse: "tied" or "untied"."""
    return "tied" if load_search_config(job.config).space.tie == "fused" else "untied"


def unrounded(fmt: Format) -> Format:
    """The format with its float scales kept in float32."""
    if not isinstance(fmt.scale, FloatScale):
        return fmt
    return replace(fmt, scale=replace(fmt.scale, dtype="fp32"))


class Judged:
    """Plans judged on windows, one after the other, each written down at once."""

    def __init__(self, loaded: LoadedModel, tokens: torch.Tensor, path: Path) -> None:
        """Reads what was measured before on these windows of this model."""
        self._loaded = loaded
        self._tokens = tokens
        self._path = path
        self._cache = WeightCache(CACHE_BYTES)
        self._scorer = Scorer(
            loaded.model,
            tokens,
            batch_size=1,
            max_cache_bytes=int(TEACHER_SHARE * memory_bytes(loaded.model.device)),
        )
        self._subject = {"model": loaded.fingerprint, "tokens": sha256(tokens)}
        known = read_json(path) if path.exists() else {}
        self._scores: dict[str, dict[str, list[float]]] = (
            known["scores"] if known.get("subject") == self._subject else {}
        )

    def row(self, plan: Plan) -> dict[str, Any]:
        """Bits as stored; KL with its interval, and loss, of a plan judged in both ways."""
        shared = {name: unrounded(fmt) for name, fmt in plan.formats.items()}
        return {
            "weight_bits": cost(plan, sites(self._loaded.model)).weight_bits,
            AS_STORED: self._judge(plan),
            UNROUNDED: self._judge(replace(plan, formats=shared)),
        }

    def _judge(self, plan: Plan) -> dict[str, Any]:
        apply = partial(apply_plan, self._loaded.model, plan, cache=self._cache)
        scores = self._score(plan.digest, apply)
        kl = bootstrap_mean(np.array(scores["kl"]), confidence=0.95, seed=0)
        return {"kl": asdict(kl), "loss": float(np.mean(scores["loss"]))}

    def write(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Everything measured, as it is now in the file."""
        itself = self._score("full precision", nullcontext)
        results = {
            "provenance": collect_provenance(
                seed=0,
                model=self._loaded.id,
                model_fingerprint=self._loaded.fingerprint,
                data_sha256=self._subject["tokens"],
            ),
            "windows": list(self._tokens.shape),
            "full_precision_loss": float(np.mean(itself["loss"])),
            "rows": list(rows),
        }
        write_json(self._path, {"subject": self._subject, "scores": self._scores} | results)
        return results

    def _score(
        self, name: str, apply: Callable[[], AbstractContextManager[object]]
    ) -> dict[str, list[float]]:
        if name not in self._scores:
            scores = self._scorer.score(apply)
            self._scores[name] = {"kl": scores.kl.tolist(), "loss": scores.loss.tolist()}
            write_json(self._path, {"subject": self._subject, "scores": self._scores})
        return self._scores[name]


def rival_rows(
    results: Mapping[str, Any], tie: str, searches: Mapping[str, str], judged: str
) -> list[Row]:
    """A row for each number of bits: the best of the others, uniform, then each of our searches.

    Args:
        results: Of `measure_rivals`.
        tie: "tied" or "untied".
        searches: Name of a run -> what its column is called; as many columns as entries.
        judged: `AS_STORED` or `UNROUNDED`.
    """
    rows = []
    for code_bits in CODE_BITS:
        stored = code_bits + SCALE_BITS
        peer, kl = best_peer(tie, code_bits), least_kl(tie, code_bits)  # type: ignore[arg-type]
        uniform = uniform_cell(results, stored, judged)
        cells = [our_cell(results, name, stored, judged, kl, peer.loss) for name in searches]
        known = "" if kl is None else f"{kl:.3g}"
        rows.append(
            (f"{code_bits:g}", f"{stored:g}", peer.tool, known, f"{peer.loss:.3f}", uniform,
             *cells)
        )  # fmt: skip
    return rows


def uniform_cell(results: Mapping[str, Any], stored: float, judged: str) -> str:
    """KL (loss) of the uniform plan that stores so many bits a weight, as measured here."""
    for row in results["rows"]:
        if row["search"] == "uniform" and abs(row["weight_bits"] - stored) < 0.01:
            return cell_of(row[judged])
    return ""


def our_cell(
    results: Mapping[str, Any],
    search: str,
    stored: float,
    judged: str,
    kl: float | None,
    loss: float,
) -> str:
    """KL (loss) of the plan that a search returned at so many bits; bold where both are less."""
    for row in results["rows"]:
        if row["search"] == search and row["target"] == stored:
            one = row[judged]
            wins = one["loss"] < loss and (kl is None or one["kl"]["mean"] < kl)
            return f"**{cell_of(one)}**" if wins else cell_of(one)
    return ""


def cell_of(one: Mapping[str, Any]) -> str:
    """KL (loss)."""
    return f"{one['kl']['mean']:.3g} ({one['loss']:.3f})"


def peer_rows() -> list[Row]:
    """A row for each tool: loss (KL) at each number of code bits, as given."""
    lines = dict.fromkeys((peer.tool, peer.tie) for peer in PEERS if peer.tie != "uniform")
    rows = []
    for tool, tie in lines:
        cells = []
        for bits in CODE_BITS:
            (peer,) = (p for p in PEERS if (p.tool, p.tie, p.code_bits) == (tool, tie, bits))
            cells.append(f"{peer.loss:.3f}" + ("" if peer.kl is None else f" ({peer.kl:.3g})"))
        rows.append((tool, tie, *cells))
    return rows


def reproduction(results: Mapping[str, Any]) -> str:
    """One sentence: how far our measurements are from those given, where both exist."""
    pairs = [f"full precision {results['full_precision_loss']:.4f} ({FULL_PRECISION_LOSS})"]
    for row in results["rows"]:
        if row["search"] == "uniform":
            bits = round(row["weight_bits"] - SCALE_BITS, 3)
            given, one = best_peer("uniform", bits), row[UNROUNDED]
            pairs.append(f"{row['returned']} {cell_of(one)} ({given.kl:.3g} ({given.loss:.3f}))")
    return (
        f"KL (loss) measured here with scales unrounded, and as given by the others' side: "
        f"{', '.join(pairs)}.\n"
    )
