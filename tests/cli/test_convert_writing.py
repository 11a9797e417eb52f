"""The directory of a conversion: whether it is done, and by which settings."""

import pytest

from mpq.cli.convert_writing import is_finished, report_of
from mpq.errors import RunError
from mpq.run import write_json


def test_a_directory_is_done_once_it_has_a_config(tmp_path):
    assert not is_finished(tmp_path / "nowhere", {})
    write_json(tmp_path / "report.json", {"settings": {"format": "int4"}})
    assert not is_finished(tmp_path, {"format": "int4"})
    write_json(tmp_path / "config.json", {})
    assert is_finished(tmp_path, {"format": "int4"})
    assert report_of(tmp_path)["settings"] == {"format": "int4"}


def test_other_settings_are_refused(tmp_path):
    write_json(tmp_path / "report.json", {"settings": {"format": "int4"}})
    write_json(tmp_path / "config.json", {})
    with pytest.raises(RunError, match="format: 'int4' -> 'int3'"):
        is_finished(tmp_path, {"format": "int3"})


def test_a_model_of_another_kind_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {})
    with pytest.raises(RunError, match=r"no report\.json: no checkpoint of mpq-convert"):
        is_finished(tmp_path, {})
