import sqlite3
from contextlib import closing, contextmanager

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from mpq.search.samplers import make_sampler, silence_optuna
from mpq.search.storage import BatchingStorage, open_storage

NAMES = ("x0", "x1", "x2")


def open_file(folder, directions=("minimize", "minimize"), pruner=None):
    silence_optuna()
    return optuna.create_study(
        storage=open_storage(
            f"sqlite:///{folder}/study.db", num_params=len(NAMES), on_stale=lambda *_: None
        ),
        study_name="s",
        directions=directions,
        sampler=make_sampler("random", seed=0, trials=10),
        pruner=pruner,
        load_if_exists=True,
    )


def draw(trial, names=NAMES):
    return {name: trial.suggest_float(name, 0, 1) for name in names}


@pytest.fixture
def study(tmp_path):
    """A study in which a trial is over: parameters wait for each other from then on."""
    opened = open_file(tmp_path)
    trial = opened.ask()
    draw(trial)
    opened.tell(trial, [1.0, 2.0])
    return opened


def waiting(study):
    return study._storage._backend._drawn


def rows_of(folder, number):
    """The parameters of a trial, as another program finds them in the file."""
    with closing(sqlite3.connect(folder / "study.db")) as file:
        joined = "SELECT param_name, param_value FROM trial_params NATURAL JOIN trials"
        return dict(file.execute(f"{joined} WHERE number = ?", (number,)))


@contextmanager
def locked(folder, study, monkeypatch):
    """Another program writes to the file, longer than this one waits."""
    connection = sqlite3.connect(folder / "study.db", isolation_level=None)
    with closing(connection), monkeypatch.context() as patch:

        def connect():
            return sqlite3.connect(folder / "study.db", timeout=0, check_same_thread=False)

        engine = study._storage._backend.engine
        patch.setattr(engine, "raw_connection", connect)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_a_heartbeat_that_stops_is_told_to_the_caller(tmp_path):
    def on_stale(study, trial):
        pass

    storage = open_storage(f"sqlite:///{tmp_path}/new/s.db", num_params=1, on_stale=on_stale)
    assert isinstance(storage, BatchingStorage)
    assert storage.get_heartbeat_interval() == 60
    assert storage.grace_period == 180
    assert storage.get_heartbeat_stale_trial_callback() is on_stale


def test_a_journal_is_a_file_that_may_lie_in_a_new_folder(tmp_path):
    open_storage(f"journal://{tmp_path}/new/s.log", num_params=1, on_stale=lambda *_: None)
    assert (tmp_path / "new").is_dir()


def test_parameters_are_written_together_when_the_last_one_is_drawn(tmp_path, study):
    trial = study.ask()
    params = draw(trial, NAMES[:2])
    assert rows_of(tmp_path, 1) == {}
    params |= draw(trial, NAMES[2:])
    assert rows_of(tmp_path, 1) == params
    assert not waiting(study)


def test_the_first_trial_of_a_process_leaves_nothing_behind(tmp_path):
    study = open_file(tmp_path)
    params = draw(study.ask())
    assert rows_of(tmp_path, 0) == params
    assert not waiting(study)


def test_a_trial_with_one_new_parameter_is_whole_when_the_last_one_is_drawn(tmp_path):
    study = open_file(tmp_path)
    study.tell(study.ask(), state=TrialState.FAIL)
    broken = study.ask()
    draw(broken, NAMES[1:2])  # and then broke off: only this name is known
    params = draw(study.ask())
    assert rows_of(tmp_path, 2) == params


@pytest.mark.parametrize(
    "then",
    [
        lambda _, trial: trial.set_user_attr("a", 1),
        lambda _, trial: trial.set_constraint("c", 0.0),
        lambda study, trial: study.tell(trial, [1.0, 2.0]),
        lambda study, trial: study.tell(trial.number, state=TrialState.FAIL),
        lambda study, trial: study._storage.get_trial(trial._trial_id),
    ],
)
def test_parameters_are_written_before_what_comes_next(tmp_path, study, then):
    trial = study.ask()
    params = draw(trial, NAMES[:2])
    assert rows_of(tmp_path, 1) == {}
    then(study, trial)
    assert rows_of(tmp_path, 1) == params


def test_parameters_are_there_when_a_pruner_is_told_of_a_rung(tmp_path):
    study = open_file(tmp_path, ["minimize"], optuna.pruners.MedianPruner())
    first = study.ask()
    draw(first)
    study.tell(first, 1.0)
    trial = study.ask()
    params = draw(trial, NAMES[:2])
    trial.report(1.0, 1)
    assert rows_of(tmp_path, 1) == params


def test_other_workers_read_what_was_written_together(tmp_path, study):
    params = []
    for _ in range(3):
        trial = study.ask()
        params.append(draw(trial))
        study.tell(trial, [1.0, 2.0])
    seen = open_file(tmp_path).get_trials()[1:]
    assert [one.params for one in seen] == params
    assert [one.distributions for one in seen] == [seen[0].distributions] * 3


def test_a_parameter_that_became_another_is_refused(study):
    with pytest.raises(ValueError, match="different distribution kind"):
        study.ask().suggest_int("x0", 0, 1)


def test_parameters_wait_on_when_they_could_not_be_written(tmp_path, study, monkeypatch):
    trial = study.ask()
    drawn = draw(trial, NAMES[:2])
    with (
        locked(tmp_path, study, monkeypatch),
        pytest.raises(StorageInternalError, match="parameters of a trial were not written"),
    ):
        trial.suggest_float("x2", 0, 1)
    assert rows_of(tmp_path, 1) == {}
    study.tell(trial, state=TrialState.FAIL)
    written = rows_of(tmp_path, 1)
    assert written.keys() == set(NAMES)
    assert {name: written[name] for name in drawn} == drawn
    assert not waiting(study)


@pytest.mark.parametrize(
    "then",
    [
        lambda _, trial: trial.suggest_float("x2", 0, 1),
        lambda _, trial: trial.set_user_attr("a", 1),
        lambda study, trial: study._storage.set_trial_state_values(
            trial._trial_id, TrialState.COMPLETE, [1.0, 2.0]
        ),
    ],
)
def test_a_trial_that_somebody_else_failed_gets_no_parameters(tmp_path, study, then):
    trial = study.ask()
    draw(trial, NAMES[:2])
    open_file(tmp_path).tell(1, state=TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError, match="Trial#1 has already finished"):
        then(study, trial)
    assert rows_of(tmp_path, 1) == {}
    assert not waiting(study)
    assert study.get_trials()[1].state == TrialState.FAIL


def test_a_trial_that_somebody_else_failed_can_be_read(tmp_path, study):
    trial = study.ask()
    draw(trial, NAMES[:2])
    open_file(tmp_path).tell(1, state=TrialState.FAIL)
    assert study._storage.get_trial(trial._trial_id).params == {}
    assert not waiting(study)


@pytest.mark.parametrize("is_failed", [False, True])
def test_nothing_is_kept_of_trials_that_broke_off(tmp_path, study, is_failed):
    broken = study.ask()
    params = draw(broken, NAMES[:1])
    if is_failed:
        open_file(tmp_path).tell(1, state=TrialState.FAIL)
    draw(study.ask(), NAMES[:1])
    assert len(waiting(study)) == 1
    assert rows_of(tmp_path, 1) == ({} if is_failed else params)


def test_a_study_that_was_deleted_is_what_its_trial_complains_of(tmp_path, study):
    trial = study.ask()
    draw(trial, NAMES[:2])
    optuna.delete_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(KeyError, match="not exist"):
        trial.set_user_attr("a", 1)
    assert not waiting(study)
