"""What the flags of `mpq-convert` mean; the program as a whole is in test_convert.py."""

import pytest

from mpq.cli import convert_inputs
from mpq.cli.convert import build_parser
from mpq.cli.convert_inputs import check_plan_source, read_config, walk_options
from mpq.errors import ConfigError, PlanError
from mpq.run import write_toml


def parsed(*flags):
    return build_parser().parse_args([*flags, "--out", "ck"])


def test_without_flags_it_is_the_shipped_model_on_its_own_prose():
    config = read_config(parsed("--format", "int4"))
    assert config.model.id == "mpq/tiny-llama"
    assert config.model.dtype == "bfloat16"  # as its files
    assert config.data.source == "builtin"
    assert config.data.calibration_tokens == 8192


def test_a_plan_outside_of_a_run_names_its_model(tmp_path):
    path = tmp_path / "plan.toml"
    write_toml(path, {"schema": 1, "model": "some/model", "formats": {"*.weight": "int4"}})
    named = ["--dtype", "float16"]
    assert read_config(parsed(str(path), *named)).model.id == "some/model"
    other = read_config(parsed(str(path), *named, "--model", "other/model"))
    assert other.model.id == "other/model"


def test_a_file_that_is_no_plan_is_left_to_whoever_reads_it(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text("not [ toml")
    assert read_config(parsed(str(path))).model.id == "mpq/tiny-llama"
    assert read_config(parsed(str(tmp_path / "none.toml"))).model.id == "mpq/tiny-llama"


def test_the_model_stays_on_the_cpu_whatever_the_device():
    config = read_config(parsed("--format", "int4", "--device", "cuda"))
    assert config.model.device == "cpu"


def test_a_text_of_its_own_can_be_held_out(tmp_path):
    flags = ["--text", str(tmp_path / "a.txt"), "--heldout-text", str(tmp_path / "b.txt")]
    data = read_config(parsed("--format", "int4", *flags)).data
    assert data.source == "file"
    assert data.heldout_path == str(tmp_path / "b.txt")


def run_of(tmp_path, **data):
    folder = tmp_path / "run"
    config = {"model": {"id": "mpq/tiny-llama", "dtype": "float32"}, "data": data}
    write_toml(folder / "config.toml", config)
    write_toml(folder / "plans" / "p.toml", {"schema": 1, "formats": {"*.weight": "int4"}})
    return str(folder / "plans" / "p.toml")


def test_held_out_text_lies_behind_what_a_search_looked_at(tmp_path):
    plan = run_of(
        tmp_path,
        source="file",
        path="a.txt",
        window=64,
        calibration_tokens=640,
        search_tokens=1280,
    )
    data = read_config(parsed(plan)).data
    assert data.search_tokens == 1920
    assert data.path == "a.txt"


def test_a_text_of_its_own_takes_nothing_of_the_runs(tmp_path):
    plan = run_of(tmp_path, source="dataset", dataset="some/set", window=64)
    data = read_config(parsed(plan, "--text", "b.txt")).data
    assert data.source == "file"
    assert data.dataset is None
    assert data.window == 64


def test_a_run_of_labelled_examples_is_no_text(tmp_path):
    plan = run_of(tmp_path, source="sst2")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("[model]", '[model]\ntask = "classification"'))
    with pytest.raises(ConfigError, match="belongs to a run of the task 'classification'"):
        read_config(parsed(plan))


def test_every_flag_of_the_solver_reaches_it(tmp_path):
    flags = [
        "--no-act-order",
        "--groups",
        "exact",
        "--grid",
        "absmax",
        "--damping",
        "0.1",
        "--batch-size",
        "2",
    ]
    flags += ["--no-true-sequential", "--bias-correction", "--activations", "disk"]
    options = walk_options(parsed("--format", "int4", *flags))
    assert not options.solver.act_order
    assert options.solver.groups == "exact"
    assert options.solver.grid == "absmax"
    assert options.solver.damping == 0.1
    assert not options.true_sequential
    assert options.bias_correction
    assert options.batch_size == 2
    assert options.activations is not None


def test_rounding_takes_no_setting_of_the_sweep():
    options = walk_options(parsed("--format", "int4", "--method", "rtn"))
    assert options.solver.method == "rtn"
    with pytest.raises(ConfigError, match="act_order and groups say how GPTQ goes"):
        walk_options(parsed("--format", "int4", "--method", "rtn", "--groups", "exact"))


def test_a_batch_holds_a_window():
    with pytest.raises(ConfigError, match="--batch-size is at least 1 window, not 0"):
        walk_options(parsed("--format", "int4", "--batch-size", "0"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "0 were given"),
        (("p.toml", "--format", "int4"), "2 were given"),
        (("--candidate-formats", "int4,int3"), "give one of the two, not 0"),
        (("--format", "int4", "--loss-threshold", "1"), "go with --candidate-formats"),
        (("--format", "int4", "--tie", "none"), "--tie goes with --candidate-formats"),
        (("--format", "int4", "--relative-loss"), "--relative-loss goes with --target-bits"),
        (
            ("--format", "int4", "--method", "rtn", "--damping", "0.1", "--no-true-sequential"),
            "--damping goes with --method gptq; --no-true-sequential goes with --method gptq",
        ),
        (("--format", "int4", "--profile", "x.csv"), "--profile goes with --target-bits"),
        (("--format", "int4", "--allow-other-model"), "--allow-other-model goes with a plan"),
        (
            ("--candidate-formats", "int4", "--target-bits", "4", "--method", "rtn"),
            "compared by the loss of --method gptq",
        ),
        (
            (
                "--candidate-formats",
                "int4",
                "--target-bits",
                "4",
                "--profile",
                "x.csv",
                "--relative-loss",
            ),
            "weighed by --profile or --relative-loss; give one of the two",
        ),
    ],
)
def test_one_source_of_a_plan_with_what_it_needs(flags, message):
    with pytest.raises(ConfigError, match=message):
        check_plan_source(parsed(*flags))


def test_a_plan_that_cannot_be_read_is_refused_first(tmp_path):
    with pytest.raises(PlanError, match=r"none\.toml: a plan is a readable TOML file"):
        check_plan_source(parsed(str(tmp_path / "none.toml")))


def test_text_of_its_own_comes_in_whole_windows():
    args = parsed("--format", "int4", "--generate", "--tokens", "100", "--window", "64")
    with pytest.raises(ConfigError, match="--tokens is a multiple of the window, 64; given 100"):
        convert_inputs._generated(args, read_config(args), None)
