"""C++ sidecars are compiled once, register with TVM, and say in a sentence what stops them."""

import shutil

import pytest

from mlcrt.errors import MlcrtError
from mlcrt.targets import native

SOURCE = """
#include <tvm/ffi/reflection/registry.h>
TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("mlcrt.test.half", [](int x) {
    if (x % 2) TVM_FFI_THROW(ValueError) << "odd";
    return x / 2;
  });
}
"""
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture
def sidecar(tmp_path, monkeypatch):
    monkeypatch.setenv("MLCRT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "half.cc").write_text(SOURCE)
    return native.Sidecar("mlcrt_test_half", folder)


@needs_compiler
def test_built_once_and_registered(sidecar, monkeypatch):
    import tvm

    first = native.build_native(sidecar)
    stamp = first.stat().st_mtime_ns
    native.load_native(sidecar)
    half = tvm.get_global_func("mlcrt.test.half")
    assert half(42) == 21
    with pytest.raises(ValueError, match="odd"):
        half(3)
    monkeypatch.setattr(native, "compiler", lambda: None)  # the cached library needs none
    assert native.build_native(sidecar) == first and first.stat().st_mtime_ns == stamp
    assert [f.name for f in first.parent.iterdir()] == [first.name]


def test_without_a_compiler_a_sentence(sidecar, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MlcrtError, match=r"no C\+\+ compiler; install g\+\+"):
        native.build_native(sidecar)


@needs_compiler
def test_a_source_that_does_not_compile(sidecar):
    (sidecar.folder / "half.cc").write_text("#error unfinished\n")
    with pytest.raises(MlcrtError, match="does not compile here: .*unfinished"):
        native.build_native(sidecar)
    assert not list(native.cache_folder().rglob("*.so"))
