"""The directory of a conversion: whether it is done, and by which settings."""

import pytest
import torch

from mpq.cli.convert_writing import is_finished, kept_windows, refuse_foreign, report_of
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


def test_a_directory_of_something_else_is_refused(tmp_path):
    refuse_foreign(tmp_path, "unfinished")
    refuse_foreign(tmp_path / "nowhere", "unfinished")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("")
    with pytest.raises(RunError, match=r"this one holds model-00001-of-00002\.safetensors"):
        refuse_foreign(tmp_path, "unfinished")
    (tmp_path / "unfinished").mkdir()
    refuse_foreign(tmp_path, "unfinished")


def test_windows_that_were_generated_are_kept(tmp_path):
    tokens = torch.randint(0, 9, (3, 4))
    assert torch.equal(kept_windows(tmp_path, {"seed": 0}, lambda: tokens), tokens)
    assert torch.equal(kept_windows(tmp_path, {"seed": 0}, torch.ones), tokens)
    with pytest.raises(RunError, match="seed: 0 -> 1"):
        kept_windows(tmp_path, {"seed": 1}, torch.ones)


def test_a_model_of_another_kind_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {})
    with pytest.raises(RunError, match=r"no report\.json: no checkpoint of mpq-convert"):
        is_finished(tmp_path, {})
