"""What every command of `mpq-profile` takes: the flags of model and text, and their config."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.cli.console import add_log_flags, progress_bar

if TYPE_CHECKING:
    from mpq.config import SearchConfig
    from mpq.profiling.candidates import Progress

DEFAULT_MODEL = "mpq/tiny-llama"
DEFAULT_FORMATS = ("bfp2", "bfp3", "bfp4", "bfp5", "bfp6", "bfp8")

# Flag -> the key of a config that it stands for.
_KEYS = {
    "model": "model.id",
    "task": "model.task",
    "dtype": "model.dtype",
    "device": "model.device",
    "method": "profile.method",
    "seed": "search.seed",
    "source": "data.source",
    "window": "data.window",
    "tokens": "data.calibration_tokens",
    "include": "space.include",
}


def add_subject_flags(command: argparse.ArgumentParser, *, seed: str) -> None:
    """Adds the flags that say which model is looked at, on which text, and where results go.

    Args:
        command: The parser of one command.
        seed: What the seed draws.
    """
    add = command.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.toml", help="a config of mpq-search")
    add("--model", metavar="ID", help=f"Hugging Face id or directory (default: {DEFAULT_MODEL})")
    add("--task", choices=("causal-lm", "classification"), help="what the model is loaded for")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the loaded model")
    add("--device", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--tokens", type=int, help="tokens that are looked at (default: 4096)")
    add("--window", type=int, help="tokens a window (default: 128)")
    text = command.add_mutually_exclusive_group()
    text.add_argument("--source", choices=("builtin", "wikitext2"), help="default: builtin")
    text.add_argument("--text", type=Path, metavar="FILE", help='a .txt, or a .jsonl with "text"')
    add("--out", type=Path, metavar="DIR", help="default: runs/ and the config's or model's name")
    add("--seed", type=int, help=f"of {seed} (default: 0)")
    add_log_flags(command)


def read_config(args: argparse.Namespace) -> SearchConfig:
    """The config file with the flags in place of its keys; without a file, the flags alone.

    Raises:
        ConfigError: Lists every fault of the file and of the flags.
    """
    from mpq.config import load_search_config, search_config

    # A command has the flags that mean something to it.
    flags = {key: getattr(args, flag, None) for flag, key in _KEYS.items()}
    if args.text is not None:
        flags |= {"data.source": "file", "data.path": str(args.text)}
    flags = {key: value for key, value in flags.items() if value is not None}
    if args.config is not None:
        return load_search_config(args.config, flags)
    window = args.window or 128
    table: dict[str, dict[str, Any]] = {
        "model": {"id": DEFAULT_MODEL},
        # A profile looks at its own split only; the others are as small as they can be.
        "data": {"window": window, "search_tokens": window, "heldout_tokens": window},
        "space": {"formats": list(DEFAULT_FORMATS)},
    }
    for key, value in flags.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    return search_config(table, where="command line")


def default_folder(args: argparse.Namespace, config: SearchConfig) -> Path:
    """Where the artefacts go when no directory is named."""
    from mpq.run import default_run_dir

    if args.config is not None:
        return default_run_dir(args.config)
    return Path("runs") / f"profile-{Path(config.model.id).name}"


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A progress bar for each thing that a profile does, as a callable."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                # What was done before this process must not count as its speed.
                tasks[what] = bar.add_task(what, total=total, completed=done)
            bar.update(tasks[what], completed=done, total=total)

        yield progress
