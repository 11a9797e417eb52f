"""Prints what one trial of a search costs, beside the plain forward pass and its KL.

    python benchmarks/search_trial.py [--model mpq/tiny-llama] [--dtype float32] [--windows 32]

Plans of bfp6 for weights (W), then layer inputs too (W+A), then keys and values (W+A+KV), on
windows of the text that ships with Python. *plain* is the model without a plan: forward passes
and KL, which every trial needs. A plan is *cold* when none of its weights is in the cache, *warm*
when all are, as most are in a search. *weights* is cold less warm: quantising every weight.
*activations* is warm less the warm plan of weights alone. Every round measures all of them, one
after the other; what is printed are medians over rounds, and of ratios within a round.
*bookkeeping* is what a guided trial of a short study in SQLite spends outside of the model.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from machine import description

from mpq.cli.evaluation import Evaluation
from mpq.cli.search_wiring import Subject, load_subject
from mpq.config import load_search_config
from mpq.formats.zoo import parse_format
from mpq.modeling.weights import WeightCache
from mpq.plans.plan import Plan
from mpq.plans.rules import resolve
from mpq.search.build import build_space
from mpq.search.objective import make_objectives
from mpq.search.samplers import silence_optuna
from mpq.search.settings import SearchSettings
from mpq.search.study import Search

CONFIG = Path(__file__).resolve().parents[1] / "search_configs" / "tiny_llama.toml"
WEIGHTS = {"*.weight": "bfp6"}
INPUTS = WEIGHTS | {"*.input": "bfp6"}
PLANS = {"W": WEIGHTS, "W+A": INPUTS, "W+A+KV": INPUTS | {"*.self_attn.[kv]": "bfp6"}}
CANDIDATES = ("bfp2", "bfp3", "bfp4", "bfp5", "bfp6", "bfp7", "bfp8")


def main() -> None:
    """Prints a table of plans and a line on bookkeeping."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mpq/tiny-llama")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--judge-every", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    arguments = parser.parse_args()
    subject = load_subject(
        load_search_config(
            CONFIG,
            {
                "model.id": arguments.model,
                "model.dtype": arguments.dtype,
                "data.window": arguments.window,
                "data.search_tokens": arguments.windows * arguments.window,
                "data.batch_size": arguments.batch_size,
                "data.judge_every": arguments.judge_every,
            },
        )
    )
    evaluation = Evaluation(subject, subject.splits.search)
    print(
        f"{description()}\n{arguments.model}, {arguments.dtype}, "
        f"{evaluation.num_windows} windows of {arguments.window} tokens, "
        f"{arguments.batch_size} at a time"
    )
    print_plans(subject, evaluation, arguments.repeats)
    if arguments.trials:
        spent = bookkeeping(subject, evaluation, arguments.trials)
        print(f"bookkeeping: {spent * 1e3:.0f} ms a trial, over {arguments.trials} trials")


def print_plans(subject: Subject, evaluation: Evaluation, repeats: int) -> None:
    """One row for every plan."""
    plans = {name: resolve(rules, subject.sites) for name, rules in PLANS.items()}
    plain = Plan(formats={})
    cold = Evaluation(replace(subject, cache=WeightCache(0)), subject.splits.search)
    for plan in (plain, *plans.values()):  # the teacher's answers, and whatever is compiled
        evaluation(plan)
    cold(plain)
    rounds = []
    for _ in range(repeats):
        found = {"plain": seconds(evaluation, plain), "W, cold": seconds(cold, plans["W"])}
        found |= {name: seconds(evaluation, plan) for name, plan in plans.items()}
        rounds.append(found)
    print(f"{'plan':<10}{'seconds':>9}{'x plain':>9}{'weights':>9}{'activations':>13}")

    def row(name: str, *columns: str) -> None:
        middle = statistics.median(found[name] for found in rounds)
        ratio = statistics.median(found[name] / found["plain"] for found in rounds)
        print(f"{name:<10}{middle:>9.3f}{ratio:>9.3f}" + "".join(columns))

    def difference(name: str, other: str) -> float:
        return statistics.median(found[name] - found[other] for found in rounds)

    row("plain")
    row("W, cold", f"{difference('W, cold', 'W'):>9.3f}")
    for name in PLANS:
        row(name, f"{'':>9}{difference(name, 'W'):>13.3f}")


def seconds(evaluation: Evaluation, plan: Plan) -> float:
    """Seconds on the clock of one evaluation of a plan on all windows."""
    start = time.perf_counter()
    evaluation(plan)
    return time.perf_counter() - start


def bookkeeping(subject: Subject, evaluation: Evaluation, trials: int) -> float:
    """Seconds a trial of a guided search of the weights that pass outside of the model."""
    candidates = [parse_format(text) for text in CANDIDATES]
    bits = {text: parse_format(text).bits_per_value for text in CANDIDATES}
    weights = resolve(WEIGHTS, subject.sites).formats
    space = build_space(
        subject.sites,
        dict.fromkeys(weights, candidates),
        damage=lambda site, text: (1 + len(site) % 7) * 4.0 ** -bits[text],
    )
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            space,
            make_objectives(("kl", "weight_bits")),
            SearchSettings(trials=trials, refine=0, sampler="tpe"),
            evaluation,
            storage=f"sqlite:///{folder}/study.db",
        )
        search.run()
    return (search.loop_seconds - search.forward_seconds) / search.num_run


if __name__ == "__main__":
    silence_optuna()
    main()
