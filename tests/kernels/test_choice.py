"""Which path is taken, and what MPQ_KERNEL is refused."""

import logging
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mpq.errors import FormatError
from mpq.formats.zoo import parse_format
from mpq.kernels import choice
from mpq.kernels.choice import choose, fake_quantize, has_compiler, path_of_device
from mpq.kernels.fake_quant import decode, encode, quantize

BFP4 = parse_format("bfp4")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("MPQ_KERNEL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def compiler_is_there(monkeypatch, *paths: str) -> None:
    monkeypatch.setattr(choice, "has_compiler", lambda path: path in paths)
    told = dict.fromkeys(paths, "")
    monkeypatch.setattr(choice, "compiler_fault", lambda path: told.get(path, "is not installed"))


def test_each_kind_of_device_has_its_fast_path():
    kinds = {device: path_of_device(device) for device in ("cpu", "cuda", "mps", "meta")}
    assert kinds == {"cpu": "cpu", "cuda": "triton", "mps": "eager", "meta": "eager"}


def test_the_fast_path_is_taken_where_it_covers(monkeypatch):
    compiler_is_there(monkeypatch, "cpu")
    x = torch.ones(2, 32)
    assert choose(x, BFP4, -1) == "cpu"
    assert choose(torch.nn.Parameter(x), BFP4, -1) == "cpu"
    assert choose(x.double(), BFP4, -1) == "eager"
    assert choose(x, parse_format("bfp4(scale_rule=mse)"), -1) == "eager"
    assert choose(x.to("meta"), BFP4, -1) == "eager"


@pytest.fixture
def no_numba(monkeypatch):
    """numba does not import, for a reason that the test gives."""

    def fail(fault: Exception) -> None:
        def import_module(name: str):
            if name == "numba":
                raise fault
            return real(name)

        real = choice.importlib.import_module
        monkeypatch.setattr(choice.importlib, "import_module", import_module)

    caches = (choice.compiler_fault, has_compiler)
    for cache in caches:
        cache.cache_clear()
    yield fail
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ModuleNotFoundError("No module named 'numba'", name="numba"), "is not installed"),
        (ImportError("needs NumPy 2.3 or less"), "does not import (needs NumPy 2.3 or less)"),
        (OSError("no libllvmlite.so"), "does not import (no libllvmlite.so)"),
    ],
)
def test_without_a_compiler_eager_takes_over_with_one_notice(
    monkeypatch, caplog, no_numba, fault, told
):
    no_numba(fault)
    with caplog.at_level(logging.WARNING):
        assert [choose(torch.ones(2, 32), BFP4, -1) for _ in range(3)] == ["eager"] * 3
    assert caplog.messages == [
        f"fake quantisation and decoding run in eager torch, many times slower: numba {told}"
    ]
    assert quantize(torch.ones(2, 32), "bfp4").sum() == 64
    monkeypatch.setenv("MPQ_KERNEL", "cpu")
    with pytest.raises(FormatError, match=re.escape(f"needs the package numba, which {told}: ")):
        quantize(torch.ones(2, 32), "bfp4")


def test_the_variable_is_obeyed(monkeypatch):
    compiler_is_there(monkeypatch, "cpu")
    monkeypatch.setenv("MPQ_KERNEL", "eager")
    assert choose(torch.ones(2, 32), BFP4, -1) == "eager"
    monkeypatch.setenv("MPQ_KERNEL", "cpu")
    assert choose(torch.ones(2, 32), BFP4, -1) == "cpu"


def test_the_variable_is_refused_where_it_cannot_be_obeyed(monkeypatch):
    compiler_is_there(monkeypatch, "cpu")
    x = torch.ones(2, 32)
    monkeypatch.setenv("MPQ_KERNEL", "fast")
    with pytest.raises(FormatError, match="must be one of eager, cpu, triton, not 'fast'"):
        quantize(x, "bfp4")
    monkeypatch.setenv("MPQ_KERNEL", "triton")
    with pytest.raises(FormatError, match=r"needs a tensor on a CUDA device .*, not on cpu"):
        quantize(x, "bfp4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(FormatError, match="needs the package triton, which is not installed"):
        quantize(x, "bfp4")
    monkeypatch.setenv("MPQ_KERNEL", "cpu")
    with pytest.raises(FormatError, match="needs a tensor on the CPU, not on meta"):
        quantize(x.to("meta"), "bfp4")
    with pytest.raises(FormatError, match=r"does not cover bfp4\(scale_rule=mse\) for a torch.fl"):
        quantize(x, "bfp4(scale_rule=mse)")


def traced(x):
    return make_fx(lambda x: quantize(x, "log8"))(torch.zeros_like(x))(x)


def mapped(x):
    return torch.vmap(lambda row: quantize(row, "log8"))(x)


@pytest.mark.parametrize("transformed", [traced, mapped])
def test_what_traces_or_transforms_sees_eager(transformed, monkeypatch):
    x = torch.randn(4, 32)
    want = quantize(x, "log8")
    assert torch.equal(transformed(x), want)
    monkeypatch.setenv("MPQ_KERNEL", "cpu")
    compiler_is_there(monkeypatch, "cpu")
    with pytest.raises(FormatError, match="needs a tensor whose memory holds its values"):
        transformed(x)


def test_a_fake_tensor_is_eagers(monkeypatch):
    compiler_is_there(monkeypatch, "cpu")
    fake = FakeTensorMode().from_tensor(torch.ones(2, 32))
    assert choose(fake, BFP4, -1) == "eager"
    monkeypatch.setenv("MPQ_KERNEL", "cpu")
    with pytest.raises(FormatError, match="holds its values, not a FakeTensor or one that is tra"):
        quantize(fake, "bfp4")


def test_the_chosen_path_quantizes(monkeypatch):
    monkeypatch.setenv("MPQ_KERNEL", "eager")
    x = torch.tensor([1.0, 0.3, -0.12, 0.0])
    assert fake_quantize(x, BFP4, -1).tolist() == [1.0, 0.25, -0.0, 0.0]


@pytest.mark.skipif(not has_compiler("triton"), reason="the wheel is an extra")
def test_triton_interprets_on_the_cpu_where_both_variables_ask_for_it(monkeypatch):
    monkeypatch.setenv("MPQ_KERNEL", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.tensor([1.0, 0.3, -0.12, 0.0])
    assert choose(x, BFP4, -1) == "triton"
    if not torch.cuda.is_available():  # else conftest.py leaves Triton to compile
        assert quantize(x, "bfp4").tolist() == [1.0, 0.25, -0.0, 0.0]
    with pytest.raises(FormatError, match=r"does not cover bfp4 for a torch\.float64 tensor"):
        quantize(x.double(), "bfp4")


def test_encoding_is_eagers_but_for_triton_and_decoding_is_every_paths(monkeypatch):
    compiler_is_there(monkeypatch, "cpu", "triton")
    x = torch.ones(2, 32)
    assert choose(x, BFP4, -1, "encode") == "eager"
    assert choose(x, BFP4, -1, "decode") == "cpu"
    assert choose(x, parse_format("bfp4(block=4x16)"), -1, "decode") == "eager"
    monkeypatch.setenv("MPQ_KERNEL", "cpu")
    with pytest.raises(FormatError, match="MPQ_KERNEL=cpu does not encode: unset MPQ_KERNEL"):
        encode(x, "bfp4")
    monkeypatch.setenv("MPQ_KERNEL", "eager")
    encoded = encode(x, "bfp4")
    monkeypatch.setenv("MPQ_KERNEL", "fast")
    with pytest.raises(FormatError, match="must be one of eager, cpu, triton, not 'fast'"):
        decode(encoded)
    monkeypatch.setenv("MPQ_KERNEL", "triton")
    with pytest.raises(FormatError, match=r"needs a tensor on a CUDA device .*, not on cpu"):
        decode(encoded)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(x, BFP4, -1, "encode") == choose(x, BFP4, -1, "decode") == "triton"
    with pytest.raises(FormatError, match=r"does not cover bfp4 for a torch\.float64 tensor"):
        decode(encoded, torch.float64)
    with pytest.raises(FormatError, match=r"does not cover bfp4 for a torch\.float64 tensor"):
        encode(x.double(), "bfp4")


def test_no_compiler_is_imported_before_a_path_needs_it():
    code = (
        "import sys, mpq, mpq.kernels.fake_quant, mpq.cli.search\n"
        "assert not {'numba', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
