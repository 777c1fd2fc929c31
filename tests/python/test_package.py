"""The package: finding and checking the op library, its version, the documented functions."""

import inspect
import os
import re
import subprocess
import sys

import kktorch
import pytest
import torch
from kktorch import _library


def test_version_is_that_of_the_project(root):
    project = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    cmake = re.search(r"project\(kktorch VERSION (\S+)", (root / "CMakeLists.txt").read_text())
    assert kktorch.__version__ == project[1] == cmake[1]


def test_library_is_built_for_the_running_torch():
    built = _library.built_for_torch(kktorch.library_path)
    assert built.split(".")[:2] == torch.__version__.split(".")[:2]


@pytest.fixture
def no_variables(monkeypatch):
    monkeypatch.delenv("KKTORCH_LIBRARY", raising=False)
    monkeypatch.delenv("KKTORCH_BUILD_DIR", raising=False)
    return monkeypatch


def test_library_is_found_by_file_then_build_folder_then_source_tree(no_variables, tmp_path):
    for place in ("named/other.so", "build/lib/libkktorch.so", "tree/build/lib/libkktorch.so"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    no_variables.setattr(_library, "_ROOT", tmp_path / "tree")
    assert _library.find_library() == tmp_path / "tree/build/lib/libkktorch.so"
    no_variables.setenv("KKTORCH_BUILD_DIR", str(tmp_path / "build"))
    assert _library.find_library() == tmp_path / "build/lib/libkktorch.so"
    no_variables.setenv("KKTORCH_LIBRARY", str(tmp_path / "named/other.so"))
    assert _library.find_library() == tmp_path / "named/other.so"


@pytest.mark.parametrize("variable", ["KKTORCH_LIBRARY", "KKTORCH_BUILD_DIR"])
def test_a_variable_that_leads_nowhere_is_an_error(no_variables, tmp_path, variable):
    no_variables.setenv(variable, str(tmp_path / "missing"))
    with pytest.raises(ImportError, match=rf"missing.*from {variable}.*scripts/test.sh.*cmake"):
        _library.find_library()


def import_with(library, root):
    package = {"KKTORCH_LIBRARY": str(library), "PYTHONPATH": str(root / "python")}
    environment = os.environ | package
    command = [sys.executable, "-c", "import kktorch"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_library_for_another_torch_is_refused_before_it_is_loaded(root, tmp_path):
    library = tmp_path / "libkktorch.so"
    library.write_bytes(b"\x7fELF...kktorch-built-for-torch=1.2.3+cu99\0...")
    result = import_with(library, root)
    assert result.returncode == 1
    assert "ImportError: kktorch: expected an op library built for torch " in result.stderr
    assert torch.__version__ in result.stderr and "torch 1.2.3+cu99" in result.stderr
    assert "Rebuild it" in result.stderr


def test_files_that_are_not_the_library_are_refused(no_variables, tmp_path):
    library = tmp_path / "libkktorch.so"
    no_variables.setenv("KKTORCH_LIBRARY", str(library))
    library.write_bytes(b"")
    with pytest.raises(ImportError, match="expected the op library, but got .* another file"):
        _library.load_library()
    library.write_bytes(f"kktorch-built-for-torch={torch.__version__}".encode())
    with pytest.raises(ImportError, match=r"expected .* to load, but got: "):
        _library.load_library()


def test_functions_have_the_arguments_and_defaults_of_the_op():
    schema = torch.ops.kktorch.attention_bn.default._schema
    parameters = inspect.signature(kktorch.attention_bn).parameters
    assert [argument.name for argument in schema.arguments] == list(parameters)
    for argument in schema.arguments:
        parameter = parameters[argument.name]
        assert argument.kwarg_only == (parameter.kind is inspect.Parameter.KEYWORD_ONLY)
        required = parameter.default is inspect.Parameter.empty
        assert argument.has_default_value() != required
        if not required:
            assert argument.default_value == parameter.default, argument.name


def test_functions_call_the_ops():
    q, k, v = torch.randn(3, 2, 3, 5, 4, dtype=torch.float64).unbind()
    options = {"use_std": False, "eps": 0.5, "scale": 0.3, "is_causal": True, "beta_value": 0.25}
    expected = torch.ops.kktorch.attention_bn(q, k, v, **options)
    assert torch.equal(kktorch.attention_bn(q, k, v, **options), expected)
    for literal in (False, True):
        reference = kktorch.attention_bn_ref(q, k, v, literal=literal, **options)
        torch.testing.assert_close(reference, expected)
