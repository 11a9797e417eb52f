"""Where a study lives, and what happens to the trials of workers that are gone.

A trial whose worker is gone is marked failed and queued again with what it had: at once when the
worker ran on this machine and its process is dead, otherwise when its heartbeat stops (databases
only; a journal file has no heartbeats).
"""

import os
import socket
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mpq.errors import RunError
from mpq.search.objective import Objective
from mpq.search.samplers import TURN, trial_turn

HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 180
UNCLAIMED_SECONDS = 10
"""Age at which a running trial without a worker's name must have lost it: to claim a trial is the
first thing that its worker does, and takes milliseconds."""

WORKER = "worker"
QUEUED = "queued"
SURPLUS = "surplus"
"""User attributes: who runs a trial, what a queued trial is, and that a trial was one too many."""


_INSERT = (
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "VALUES (?, ?, ?, ?)"
)


class BatchingStorage(optuna.storages.RDBStorage):
    """An SQLite file to which the parameters of a trial are written at once, not one by one.

    A transaction for each is a third of what a trial costs in Optuna. They are written before
    anything else of the trial is, so whoever sees its state or its attributes sees them. A
    process that is killed before has lost them: its trial is queued again and draws them anew.

    Optuna's cache calls `_set_trial_param`. Should another release not, nothing waits here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what `RDBStorage` takes."""
        super().__init__(*args, **kwargs)
        self._waiting: dict[int, list[tuple[int, str, float, str]]] = {}

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: optuna.distributions.BaseDistribution,
        previous_distribution: optuna.distributions.BaseDistribution | None,
    ) -> None:
        if (
            previous_distribution is None
        ):  # the first of its name: Optuna compares with the study's
            super()._set_trial_param(
                trial_id, param_name, param_value_internal, distribution, previous_distribution
            )
            return
        optuna.distributions.check_distribution_compatibility(previous_distribution, distribution)
        stored = optuna.distributions.distribution_to_json(distribution)
        row = (trial_id, param_name, param_value_internal, stored)
        self._waiting.setdefault(trial_id, []).append(row)

    def _write(self, trial_id: int) -> None:
        rows = self._waiting.pop(trial_id, [])
        if rows:
            with self.engine.begin() as connection:
                connection.exec_driver_sql(_INSERT, rows)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As stored, what waited included."""
        self._write(trial_id)
        return super().get_trial(trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Whether it was set; what waited is written before."""
        self._write(trial_id)
        return bool(super().set_trial_state_values(trial_id, state, values))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Sets it; what waited is written before."""
        self._write(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Sets it; what waited is written before."""
        self._write(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Sets it; what waited is written before."""
        self._write(trial_id)
        super().set_trial_system_attr(trial_id, key, value)


def open_study(
    url: str,
    name: str,
    objectives: Sequence[Objective],
    *,
    digest: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> Study:
    """The study `name` in the storage at `url`, made when it is not there.

    Args:
        url: A database URL of Optuna's, `journal:///path` for a journal file, or
            `grpc://host:port` for a storage proxy. SQLite is switched to write-ahead logging, so
            that several workers and a dashboard can use it at once.
        name: Of the study.
        objectives: Their names and directions must be those that the study was made with.
        digest: Of the space, which must be the one that the study was made for.
        sampler: For trials of this process.
        pruner: For trials of this process.

    Raises:
        RunError: The storage holds a study of this name for another space or other objectives.
    """
    made_for = {"space": digest, "objectives": [f"{o.direction} {o.name}" for o in objectives]}
    study = optuna.create_study(
        storage=_storage(url),
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


def _storage(url: str) -> Any:
    if url.startswith("journal://"):
        log = Path(url.removeprefix("journal://"))
        log.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(log))
        return optuna.storages.JournalStorage(backend)
    if url.startswith("grpc://"):
        host, _, port = url.removeprefix("grpc://").partition(":")
        return optuna.storages.GrpcStorageProxy(host=host, port=int(port or 13000))
    arguments: dict[str, Any] = {}
    storage = optuna.storages.RDBStorage
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = {"creator": partial(_connect, path)}
        storage = BatchingStorage
    return storage(
        url,
        engine_kwargs=arguments,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=requeue,
    )


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in write-ahead mode: readers and one writer do not wait for each other.

    A killed process loses nothing; a power cut may lose the last trials, never the file
    (`synchronous=NORMAL`, https://www.sqlite.org/wal.html section 2.3).
    """
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


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
