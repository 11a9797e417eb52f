from types import SimpleNamespace

import numpy as np
import pytest

from mpq.cli.search_wiring import (
    load_functions,
    load_subject,
    make_space,
    settings_of,
)
from mpq.config import search_config
from mpq.errors import ConfigError, PlanError
from mpq.search.objective import make_objectives


def config_of(**sections):
    table = {
        "model": {"id": "mpq/tiny-llama"},
        "data": {
            "window": 32,
            "calibration_tokens": 64,
            "search_tokens": 96,
            "heldout_tokens": 64,
            "batch_size": 2,
        },
        "space": {"formats": ["bfp3", "bfp5"]},
    }
    for name, section in sections.items():
        table[name] = table.get(name, {}) | section
    return search_config(table)


@pytest.fixture(scope="module")
def subject():
    return load_subject(config_of())


def test_every_weight_is_searched_and_nothing_else(subject):
    assert {site.role for site in subject.candidates} == {"weight"}
    space = make_space(subject, None)
    assert sum(len(group.sites) for group in space.groups) == len(subject.candidates)
    assert (space.damage == 0).all()
    assert space.model == "mpq/tiny-llama"
    assert space.fingerprint == subject.loaded.fingerprint


def test_a_fixed_site_is_not_searched():
    subject = load_subject(config_of(space={"fixed": {"*.o_proj.weight": "bfp8"}}))
    assert not any(site.kind == "o_proj" for site in subject.candidates)
    assert {str(fmt) for fmt in subject.fixed.values()} == {"bfp8"}
    assert len(make_space(subject, None).fixed) == len(subject.fixed)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(PlanError, match="nowhere"):
        load_subject(config_of(space={"fixed": {"nowhere*": "bfp8"}}))


def test_identity_formats_do_no_damage():
    subject = load_subject(config_of(space={"formats": ["bfp3", "fp32"]}))
    names = [site.name for site in subject.candidates]
    table = SimpleNamespace(select=lambda rows, columns: np.full((len(rows), len(columns)), 7.0))
    space = make_space(subject, table)
    assert space.damage[:, 1].tolist() == [0.0] * len(space.groups)
    assert space.damage[:, 0].sum() == 7.0 * len(names)


def test_settings_follow_the_config():
    config = config_of(search={"timeout_minutes": 2.0, "budget": {"weight_bits": 4.0}, "seed": 5})
    settings = settings_of(config)
    assert settings.timeout_seconds == 120
    assert settings.budget == {"weight_bits": 4.0}
    assert settings.seed == 5
    assert settings_of(config_of()).timeout_seconds is None


def test_functions_come_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_measure.py").write_text("def f(plan, model):\n    return 1.0\nN = 3\n")
    objectives = make_objectives(["maximize:own_measure:f", "kl"])
    functions = load_functions(objectives)
    assert list(functions) == ["maximize:own_measure:f"]
    assert functions["maximize:own_measure:f"](None, None) == 1.0
    with pytest.raises(ConfigError, match=r"'own_measure:g' names a function .* no attribute 'g'"):
        load_functions(make_objectives(["own_measure:g"]))
    with pytest.raises(ConfigError, match="'own_measure:N' is a int; expected a function"):
        load_functions(make_objectives(["own_measure:N"]))
