"""Where a study lives: a database, a journal file, or a server in front of one."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 180

_STATE = "SELECT number, state FROM trials WHERE trial_id = ?"
# A parameter that is there already stays, as it does in Optuna.
_INSERT = (
    "INSERT OR IGNORE INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "VALUES (?, ?, ?, ?)"
)

_Row = tuple[int, str, float, str]


class BatchingStorage(optuna.storages.RDBStorage):
    """An SQLite file to which the parameters of a trial are written at once, not one by one.

    A transaction for each is a third of what a trial costs in Optuna. They are written when the
    last one is drawn, and before anything else of the trial is: whoever sees its state or its
    attributes sees them. A process that is killed while it draws has lost them; that takes
    milliseconds, and its trial draws them anew.

    Optuna's cache calls `_set_trial_param`. Should another release not, nothing waits here.
    """

    def __init__(self, *args: Any, num_params: int, **kwargs: Any) -> None:
        """Takes what `RDBStorage` takes.

        Args:
            *args: Passed on.
            num_params: How many parameters a trial has.
            **kwargs: Passed on.
        """
        super().__init__(*args, **kwargs)
        self._num_params = num_params
        # Trial -> a row for each parameter drawn, None for one that is written.
        self._drawn: dict[int, list[_Row | None]] = {}

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: optuna.distributions.BaseDistribution,
        previous_distribution: optuna.distributions.BaseDistribution | None,
    ) -> None:
        self._settle_others(trial_id)
        row = None
        if previous_distribution is None:
            # The first of its name: Optuna compares with the study's.
            super()._set_trial_param(
                trial_id, param_name, param_value_internal, distribution, previous_distribution
            )
        else:
            optuna.distributions.check_distribution_compatibility(
                previous_distribution, distribution
            )
            stored = optuna.distributions.distribution_to_json(distribution)
            row = (trial_id, param_name, param_value_internal, stored)
        drawn = self._drawn.setdefault(trial_id, [])
        drawn.append(row)
        if len(drawn) == self._num_params:
            self._write(trial_id)

    def _settle_others(self, trial_id: int) -> None:
        """Nothing is kept for a trial that broke off: a process draws for one at a time."""
        for other in [one for one in self._drawn if one != trial_id]:
            with suppress(UpdateFinishedTrialError):
                self._write(other)

    def _write(self, trial_id: int) -> None:
        """Writes what waits of a trial, and forgets it once that is safe.

        Raises:
            StorageInternalError: It could not be written; it waits on.
            UpdateFinishedTrialError: The trial is over.
        """
        rows = [row for row in self._drawn.get(trial_id, ()) if row is not None]
        over = self._insert(trial_id, rows) if rows else None
        self._drawn.pop(trial_id, None)
        if over is not None:
            raise UpdateFinishedTrialError(
                f"Trial#{over} has already finished and can not be updated."
            )

    def _insert(self, trial_id: int, rows: Sequence[_Row]) -> int | None:
        """The trial's number where it is over, which keeps its parameters as they are."""
        try:
            with closing(self.engine.raw_connection()) as connection:
                # Immediate: nobody ends the trial between the look at its state and the rows.
                connection.execute("BEGIN IMMEDIATE")
                found = connection.execute(_STATE, (trial_id,)).fetchone()
                if found is None:  # its study was deleted; what comes next says so
                    return None
                number, state = found
                if TrialState[state].is_finished():
                    return int(number)
                connection.executemany(_INSERT, rows)
                connection.commit()
        except sqlite3.Error as error:
            raise StorageInternalError("the parameters of a trial were not written") from error
        return None

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As stored, what waited included."""
        with suppress(UpdateFinishedTrialError):
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


def open_storage(
    url: str, *, num_params: int, on_stale: Callable[[Study, FrozenTrial], None]
) -> Any:
    """The storage at `url`, for `optuna.create_study`.

    Args:
        url: A database URL of Optuna's, `journal:///path` for a journal file, or
            `grpc://host:port` for a storage proxy. SQLite is switched to write-ahead logging, so
            that several workers and a dashboard can use it at once.
        num_params: How many parameters a trial has.
        on_stale: Called with a trial that was failed because its heartbeat had stopped
            (databases only).
    """
    if url.startswith("journal://"):
        log = Path(url.removeprefix("journal://"))
        log.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(log)))
    if url.startswith("grpc://"):
        host, _, port = url.removeprefix("grpc://").partition(":")
        return optuna.storages.GrpcStorageProxy(host=host, port=int(port or 13000))
    heartbeat: dict[str, Any] = {
        "heartbeat_interval": HEARTBEAT_SECONDS,
        "grace_period": GRACE_SECONDS,
        "heartbeat_stale_trial_callback": on_stale,
    }
    if not url.startswith("sqlite:///"):
        return optuna.storages.RDBStorage(url, **heartbeat)
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    creator = {"creator": partial(_connect, path)}
    return BatchingStorage(url, num_params=num_params, engine_kwargs=creator, **heartbeat)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in write-ahead mode: readers and one writer do not wait for each other.

    A killed process loses nothing; a power cut may lose the last trials, never the file
    (`synchronous=NORMAL`, https://www.sqlite.org/wal.html section 2.3).
    """
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection
