"""A study with several workers, and what happens to the trials of those that are gone.

A trial whose worker is gone is marked failed and queued again with what it had: at once when the
worker ran on this machine and its process is dead, otherwise when its heartbeat stops (databases
only; a journal file has no heartbeats).
"""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mpq.errors import RunError
from mpq.search.objective import Objective
from mpq.search.samplers import TURN, trial_turn
from mpq.search.storage import open_storage

UNCLAIMED_SECONDS = 10
"""Age at which a running trial without a worker's name must have lost it: to claim a trial is the
first thing that its worker does, and takes milliseconds."""

WORKER = "worker"
QUEUED = "queued"
SURPLUS = "surplus"
"""User attributes: who runs a trial, what a queued trial is, and that a trial was one too many."""


def open_study(
    url: str,
    name: str,
    objectives: Sequence[Objective],
    *,
    digest: str,
    num_params: int,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> Study:
    """The study `name` in the storage at `url`, made when it is not there.

    Args:
        url: See `storage.open_storage`.
        name: Of the study.
        objectives: Their names and directions must be those that the study was made with.
        digest: Of the space, which must be the one that the study was made for.
        num_params: How many parameters a trial has.
        sampler: For trials of this process.
        pruner: For trials of this process.

    Raises:
        RunError: The storage holds a study of this name for another space or other objectives.
    """
    made_for = {"space": digest, "objectives": [f"{o.direction} {o.name}" for o in objectives]}
    study = optuna.create_study(
        storage=open_storage(url, num_params=num_params, on_stale=requeue),
        study_name=name,
        directions=[objective.direction for objective in objectives],
        sampler=sampler,
        pruner=pruner,
        load_if_exists=True,
    )
    known = study.user_attrs
    differing = [key for key, value in made_for.items() if known.get(key, value) != value]
    if differing or len(study.directions) != len(objectives):
        raise RunError(
            f"the study {name!r} in {url} was made for another search: "
            f"{', '.join(differing) or 'directions'} differ; name another directory with --out "
            "or another search.storage"
        )
    if any(key not in known for key in made_for):
        study.set_metric_names([objective.name for objective in objectives])
        for key, value in made_for.items():
            study.set_user_attr(key, value)
    return study


def this_worker() -> dict[str, Any]:
    """Who this process is: host, process id, and the time it started in the kernel's ticks."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def requeue(study: Study, trial: FrozenTrial) -> None:
    """Queues a failed trial again: same turn, same parameters, same plan."""
    drawn = trial.system_attrs.get("fixed_params", trial.params)
    kept = {key: trial.user_attrs[key] for key in (QUEUED, "source") if key in trial.user_attrs}
    study.enqueue_trial(dict(drawn), user_attrs={**kept, **_turn(study, trial)})


def reclaim(study: Study, num_params: int) -> int:
    """How many running trials of dead workers were failed and queued again.

    Args:
        study: Whose trials.
        num_params: How many parameters a trial has: one that was killed while they were drawn
            is queued without any, and draws them again.
    """
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_abandoned(trial):
            continue
        with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            give_back(study, trial, num_params)
            count += 1
    return count


def may_come_back(study: Study, trials: Sequence[FrozenTrial], num_params: int) -> bool:
    """True while a trial runs that no worker has claimed yet; waits a moment then.

    A worker that is killed right after it took a trial leaves it like that.

    Args:
        study: Whose trials.
        trials: As they were read a moment ago.
        num_params: See `reclaim`.
    """
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    if all(WORKER in trial.user_attrs for trial in running):
        return False
    time.sleep(0.5)
    reclaim(study, num_params)
    return True


def give_back(study: Study, trial: FrozenTrial, num_params: int) -> None:
    """Fails a trial that will not be finished, and queues it again.

    Raises:
        ValueError: Somebody else finished or failed it meanwhile.
    """
    if trial.state == TrialState.RUNNING:
        study.tell(trial.number, state=TrialState.FAIL)
    if len(trial.params) < num_params and QUEUED not in trial.user_attrs:
        study.enqueue_trial({}, user_attrs=_turn(study, trial))
    else:
        requeue(study, trial)


def _turn(study: Study, trial: FrozenTrial) -> dict[str, int]:
    return {TURN: trial_turn(trial, study.get_trials(deepcopy=False))}


def _is_abandoned(trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        age = datetime.now() - (trial.datetime_start or datetime.now())
        return age > timedelta(seconds=UNCLAIMED_SECONDS)
    if worker["host"] != socket.gethostname():
        return False
    return not _is_alive(int(worker["pid"]), str(worker["started"]))


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _started(pid) == started


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty where the system does not tell.

    Process ids are given anew; together with its start, a process is known for certain.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
