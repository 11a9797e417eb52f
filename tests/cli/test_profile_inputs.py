import argparse
import io
from contextlib import redirect_stderr

import pytest

from mpq.cli import profile_inputs
from mpq.cli.profile_inputs import add_subject_flags, default_folder, read_config, shown_progress
from mpq.errors import ConfigError


def parse(*flags):
    parser = argparse.ArgumentParser()
    add_subject_flags(parser, seed="the windows")
    return parser.parse_args(flags)


def test_default_directories_carry_the_name_of_what_is_profiled():
    args = parse("--model", "Qwen/Qwen3-0.6B")
    assert default_folder(args, read_config(args)).as_posix() == "runs/profile-Qwen3-0.6B"
    args = parse("search_configs/tiny_llama.toml")
    assert default_folder(args, read_config(args)).as_posix() == "runs/tiny_llama"


def test_flags_stand_for_keys_and_what_a_command_lacks_is_left_to_the_config():
    config = read_config(parse("--tokens", "256", "--window", "64", "--seed", "3"))
    assert config.model.id == profile_inputs.DEFAULT_MODEL
    assert (config.data.calibration_tokens, config.data.window) == (256, 64)
    assert config.search.seed == 3
    assert config.profile.method == "kl"
    args = parse("search_configs/tiny_llama.toml", "--tokens", "512", "--text", "some.txt")
    config = read_config(args)
    assert (config.data.source, config.data.path) == ("file", "some.txt")
    assert config.data.calibration_tokens == 512


def test_faults_of_flags_are_told_as_the_keys_that_they_stand_for():
    with pytest.raises(ConfigError, match=r"data\.calibration_tokens: expected whole windows"):
        read_config(parse("--tokens", "100"))


def test_a_bar_goes_on_where_the_profile_was_stopped():
    said = io.StringIO()
    with redirect_stderr(said), shown_progress() as progress:
        progress("forward passes", 30, 40)
        progress("forward passes", 40, 40)
        progress("weights", 0, 0)
    assert "forward passes" in said.getvalue()
    assert "40/40" in said.getvalue()
