"""Runs the parts of the experiment, goes on with them, and writes what they say.

    python experiments/002_gptq/run.py MODEL PART... --calibration TEXT --heldout TEXT [--out DIR]

MODEL is `tiny_llama` or `gemma`. README.md beside this file says what the parts are. Everything
that was done is kept in the directory; `report` rewrites results.json and tables.md from it.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import conversions
import judge
from report import write_report
from settings import SETTINGS, Setting
from torch import Tensor
from windows import CALIBRATION, HELDOUT, read_windows, write_windows

from mpq.convert.block import WalkOptions
from mpq.files import read_json, write_json
from mpq.modeling.loading import LoadedModel, load_model
from mpq.plans.plan import Plan
from mpq.plans.rules import read_plan

HERE = Path(__file__).resolve().parent
PARTS = ("windows", "formats", "variants", "mixed", "plans", "rivals", "report")
SCORES = "scores.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """A model with its windows, and where everything about it lies."""

    folder: Path
    setting: Setting
    loaded: LoadedModel

    def windows(self, name: str) -> Tensor:
        """Windows for calibration or judging."""
        return read_windows(self.folder, name)

    def record(self, name: str, make: Any) -> None:
        """Adds a score under its name, unless it is there."""
        if name in self.scores:
            return
        start = time.perf_counter()
        score = make() | {"seconds": round(time.perf_counter() - start, 1)}
        # Read again: another part may have written meanwhile.
        write_json(self.folder / SCORES, self.scores | {name: score})
        print(name, {key: score[key] for key in ("loss", "kl", "seconds")}, flush=True)

    @property
    def scores(self) -> dict[str, Any]:
        """What was scored so far, by name."""
        path = self.folder / SCORES
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        return found


def formats(bench: Bench) -> None:
    """Every format, rounded to nearest and solved."""
    scorer = judge.judge_of(bench.loaded, bench.windows(HELDOUT))
    bench.record("full precision", lambda: judge.judged(scorer, nullcontext) | _size(bench, None))
    for text in bench.setting.formats:
        plan = conversions.uniform(bench.loaded, text)
        bench.record(
            f"rtn {text}",
            lambda plan=plan: (
                judge.judged(scorer, partial(judge.rounded, bench.loaded, plan))
                | _size(bench, plan)
            ),
        )
        bench.record(f"gptq {text}", partial(_solved, bench, scorer, f"gptq_{text}", plan))


def variants(bench: Bench) -> None:
    """Some formats solved in other ways, one thing changed at a time."""
    scorer = judge.judge_of(bench.loaded, bench.windows(HELDOUT))
    for variant in bench.setting.variants:
        options = replace(bench.setting.options, **variant.changes)
        walking = WalkOptions(
            solver=options, true_sequential=variant.true_sequential, batch_size=1
        )
        for text in variant.formats:
            title = f"gptq {variant.name} {text}"
            plan = conversions.uniform(bench.loaded, text)
            bench.record(title, partial(_solved, bench, scorer, file_name(title), plan, walking))


def file_name(title: str) -> str:
    """What a conversion's folder is called."""
    return title.replace(",", "").replace(" ", "_")


def mixed(bench: Bench) -> None:
    """Formats assigned by the solver's loss, at the bits of a uniform plan."""
    scorer = judge.judge_of(bench.loaded, bench.windows(HELDOUT))
    for mixture in bench.setting.mixtures:
        profile = bench.folder / mixture.profile
        weighings = [one for one in mixture.weighings if one != "damage" or profile.exists()]
        if not weighings:
            continue
        found = conversions.losses_in(
            bench.folder / f"losses_{mixture.name}",
            bench.loaded,
            mixture.formats,
            bench.windows(CALIBRATION),
            bench.setting.options,
        )
        for weighing in weighings:
            plan = conversions.assigned(bench.loaded, found, mixture.reference, weighing, profile)
            title = f"mixed {mixture.name} {weighing} at {mixture.reference}"
            bench.record(title, partial(_solved, bench, scorer, file_name(title), plan))
        uniform = conversions.uniform(bench.loaded, mixture.reference)
        title = f"gptq {mixture.reference}"
        bench.record(title, partial(_solved, bench, scorer, file_name(title), uniform))


def plans(bench: Bench) -> None:
    """Plans of searches, which lie in `plans/` of the directory: rounded, and solved."""
    scorer = judge.judge_of(bench.loaded, bench.windows(HELDOUT))
    every = [place.site for place in conversions.block_weights(bench.loaded)]
    for path in sorted((bench.folder / "plans").glob("*.toml")):
        plan = read_plan(path, every, fingerprint=bench.loaded.fingerprint)
        bench.record(
            f"rtn plan {path.stem}",
            lambda plan=plan: (
                judge.judged(scorer, partial(judge.rounded, bench.loaded, plan))
                | _size(bench, plan)
            ),
        )
        name = f"plan_{path.stem}"
        bench.record(f"gptq plan {path.stem}", partial(_solved, bench, scorer, name, plan))


def _solved(
    bench: Bench, scorer: Any, name: str, plan: Any, walking: WalkOptions | None = None
) -> dict[str, Any]:
    finished = conversions.convert(
        bench.folder / name,
        bench.loaded,
        plan,
        bench.windows(CALIBRATION),
        walking or WalkOptions(solver=bench.setting.options, batch_size=1),
    )
    scores = judge.judged(scorer, partial(judge.converted, bench.loaded, finished))
    rows = [report for block in finished.blocks() for report in block.reports]
    return (
        scores
        | _size(bench, sum(packed.num_bits for packed in conversions.packed_in(finished)))
        | {
            "formats": conversions.shares(plan),
            "layer_loss": sum(row.loss for row in rows),
            "layer_loss_rounded": sum(row.rtn_loss for row in rows),
            "not_solved": [row.site for row in rows if row.method == "rtn"],
        }
    )


def _size(bench: Bench, stored: int | Plan | None) -> dict[str, Any]:
    """Bits a weight and bytes: as many as are stored, of a plan, or of the model's own weights."""
    weights = conversions.block_weights(bench.loaded)
    values = sum(place.site.shape[0] * place.site.shape[1] for place in weights)
    match stored:
        case None:
            bits = values * weights[0].site.stored_bits
        case Plan():
            bits = conversions.bits_of(stored, weights)
        case _:
            bits = stored
    return {"bits": bits / values, "bytes": bits / 8}


def rivals(bench: Bench) -> None:
    """The weights that other tools left in `rivals/` of the directory; see rivals.py."""
    scorer = judge.judge_of(bench.loaded, bench.windows(HELDOUT))
    for folder in sorted((bench.folder / "rivals").iterdir()):
        if not (folder / "weights.safetensors").is_file():
            continue
        bench.record(
            f"rival {folder.name}",
            lambda folder=folder: (
                judge.judged(scorer, partial(judge.given, bench.loaded, folder))
                | {"record": read_json(folder / "record.json")}
            ),
        )


def without_places(value: Any) -> Any:
    """The same record with every absolute path cut to its last part."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def main(argv: Sequence[str] | None = None, settings: dict[str, Setting] | None = None) -> int:
    """0; runs the parts named, in the order of `PARTS`."""
    known = SETTINGS if settings is None else settings
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", choices=tuple(known))
    add("parts", nargs="+", choices=PARTS)
    add("--calibration", type=Path, help="a text, for `windows`")
    add("--heldout", type=Path, help="another text, for `windows`")
    add("--out", type=Path, default=Path("runs/002"))
    add("--results", type=Path, default=HERE, help="where `report` writes")
    args = parser.parse_args(argv)
    setting = known[args.model]
    folder = args.out / args.model
    if args.parts == ["report"]:
        write_report(args.out, args.results)
        return 0
    bench = Bench(
        folder=folder, setting=setting, loaded=load_model(setting.model, dtype=setting.dtype)
    )
    if "windows" in args.parts:
        sizes = (setting.calibration, setting.heldout)
        write_windows(folder, bench.loaded.tokenizer, (args.calibration, args.heldout), sizes)
        plain = asdict(setting) | {"fingerprint": bench.loaded.fingerprint}
        write_json(folder / "setting.json", plain)
    for part in (formats, variants, mixed, plans, rivals):
        if part.__name__ in args.parts:
            part(bench)
    if "report" in args.parts:
        write_report(args.out, args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
