"""What is built, from the switches and from what is installed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from rnnfast._build import host, ninja_file, nvcc, recipe, record, torchinfo
from rnnfast._build.recipe import BuildError, gencode, make_recipe, parse_archs

from .support import ROOT, clean_env, fake_nvcc

TORCH_ROOT = torchinfo.find_torch().root


@pytest.fixture
def env(tmp_path: Path, monkeypatch) -> dict[str, str]:
    """A PATH with a compiler and ninja on it, and no nvcc; a GPU is visible."""
    monkeypatch.setattr(host, "gpu_visible", lambda env: True)
    return clean_env({"PATH": str(tools(tmp_path / "bin"))})


@pytest.fixture
def torch_with(monkeypatch):
    """Make the build see a torch with this CUDA version, and neither pip's nvcc nor a toolkit."""

    def patch(cuda: str | None) -> None:
        info = torchinfo.TorchInfo(TORCH_ROOT, f"2.9.1+{cuda or 'cpu'}", cuda)
        monkeypatch.setattr(torchinfo, "find_torch", lambda: info)
        monkeypatch.setattr(nvcc, "pip_site_dirs", list)
        monkeypatch.setattr(nvcc, "TOOLKIT", Path("no such folder"))

    return patch


def tools(folder: Path) -> Path:
    folder.mkdir()
    compiler, reason = host.find_compiler()
    if compiler is None:
        pytest.skip(reason)
    wrapper = folder / "c++"
    wrapper.write_text("#!/bin/sh\necho 'fake c++ 1.0'\n")
    wrapper.chmod(0o755)
    (folder / "ninja").symlink_to(host.find_ninja() or pytest.skip("ninja is not installed"))
    return folder


@pytest.mark.parametrize(("switch", "defined"), [("0", False), ("1", True)])
def test_the_approximate_tanh_is_asked_for(env, torch_with, tmp_path, switch, defined):
    torch_with("13.0")
    fake_nvcc(tmp_path / "bin/nvcc", "13.0.88")
    made = make_recipe(env | {"RNNFAST_FAST_TANH": switch})
    assert ("-DRNNFAST_FAST_TANH" in ninja_file.cuda_flags(made)) == defined


def test_auto_without_nvcc_builds_without_cuda_and_says_why(env, torch_with):
    torch_with("13.0")
    made = make_recipe(env)
    assert made.nvcc is None
    assert made.archs == ()
    assert "CUDA off: no nvcc for torch 2.9.1+13.0: " in made.summary()
    assert "\n" not in made.summary()


def test_auto_with_a_fitting_nvcc_says_which_and_for_what(env, torch_with, tmp_path):
    torch_with("13.0")
    path = fake_nvcc(tmp_path / "bin/nvcc", "13.0.88")
    made = make_recipe(env)
    assert made.nvcc.path == path
    assert f"CUDA on: nvcc 13.0.88 (PATH: {path}), architectures 8.0 9.0+PTX" in made.summary()


def test_1_without_a_fitting_nvcc_fails_with_both_versions_and_the_command(
    env, torch_with, tmp_path
):
    torch_with("13.0")
    fake_nvcc(tmp_path / "bin/nvcc", "12.4.131")
    with pytest.raises(BuildError) as error:
        make_recipe(env | {"RNNFAST_CUDA": "1"})
    for part in ("RNNFAST_CUDA=1", "nvcc 12.4.131", "CUDA 13.0", "pip install 'rnnfast[cuda]'"):
        assert part in str(error.value)


def test_1_with_a_torch_without_cuda_fails(env, torch_with, tmp_path):
    torch_with(None)
    fake_nvcc(tmp_path / "bin/nvcc", "13.0.88")
    with pytest.raises(BuildError, match=r"torch 2\.9\.1\+cpu is a build without CUDA"):
        make_recipe(env | {"RNNFAST_CUDA": "1"})
    assert make_recipe(env).nvcc is None


@pytest.mark.parametrize("asked", [{"TORCH_CUDA_ARCH_LIST": "9.0"}, {"FORCE_CUDA": "1"}])
def test_without_a_gpu_cuda_is_built_where_it_is_asked_for(
    env, torch_with, tmp_path, monkeypatch, asked
):
    torch_with("13.0")
    fake_nvcc(tmp_path / "bin/nvcc", "13.0.88")
    monkeypatch.setattr(host, "gpu_visible", lambda env: False)
    note = make_recipe(env).cuda_note
    assert note.startswith("CUDA off: no NVIDIA GPU is visible (TORCH_CUDA_ARCH_LIST or FORCE_CUDA")
    assert make_recipe(env | asked).nvcc is not None
    assert make_recipe(env | asked | {"RNNFAST_CUDA": "0"}).nvcc is None


def test_force_cuda_fails_without_an_nvcc_and_is_a_switch(env, torch_with):
    torch_with("13.0")
    with pytest.raises(BuildError, match=r"FORCE_CUDA=1 asks for CUDA, but no nvcc"):
        make_recipe(env | {"FORCE_CUDA": "1"})
    with pytest.raises(BuildError, match=r"FORCE_CUDA='yes'"):
        make_recipe(env | {"FORCE_CUDA": "yes"})


def test_a_gpu_is_seen_as_a_device_or_by_nvidia_smi(tmp_path):
    env = {"PATH": str(tmp_path)}
    assert not host.gpu_visible(env, dev=tmp_path)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")  # installed, without a driver
    tool.chmod(0o755)
    assert not host.gpu_visible(env, dev=tmp_path)
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200'\n")
    assert host.gpu_visible(env, dev=tmp_path)
    tool.unlink()
    (tmp_path / "nvidiactl").touch()
    assert not host.gpu_visible(env, dev=tmp_path)
    (tmp_path / "nvidia0").touch()
    assert host.gpu_visible(env, dev=tmp_path)


@pytest.mark.parametrize(
    ("version", "flag"),
    [
        ("13.0.88", "-compress-mode=size"),
        ("12.8.93", "-compress-mode=size"),
        ("12.6.85", "-Xfatbin=-compress-all"),
    ],
)
def test_device_code_is_compressed(env, torch_with, tmp_path, version, flag):
    torch_with(version[:2] + ".0")
    fake_nvcc(tmp_path / "bin/nvcc", version)
    assert flag in ninja_file.cuda_flags(make_recipe(env))


def test_0_builds_without_cuda_beside_an_nvcc(env, torch_with, tmp_path):
    torch_with("13.0")
    fake_nvcc(tmp_path / "bin/nvcc", "13.0.88")
    made = make_recipe(env | {"RNNFAST_CUDA": "0"})
    assert made.nvcc is None
    assert made.cuda_note == "CUDA off: RNNFAST_CUDA=0"


def test_a_switch_with_another_value_is_refused(env):
    with pytest.raises(BuildError, match=r"RNNFAST_CUDA='yes'.*auto, 0, 1"):
        make_recipe(env | {"RNNFAST_CUDA": "yes"})


def test_no_compiler_skips_unless_cuda_is_asked_for(env):
    without = env | {"PATH": os.devnull}
    assert make_recipe(without) == "no C++ compiler (no c++, g++ or clang++ on PATH)"
    named = make_recipe(env | {"CXX": "/no/such/compiler"})
    assert named == "no C++ compiler (CXX=/no/such/compiler does not run)"
    with pytest.raises(BuildError, match=r"RNNFAST_CUDA=1.*no C"):
        make_recipe(without | {"RNNFAST_CUDA": "1"})


def test_no_torch_skips_with_the_flag_to_use(env, monkeypatch):
    monkeypatch.setattr(torchinfo, "find_torch", lambda: None)
    assert "--no-build-isolation" in make_recipe(env)


def test_what_is_known_of_torch_without_importing_it_is_true():
    import torch

    info = torchinfo.find_torch()
    assert (info.version, info.cuda) == (str(torch.__version__), torch.version.cuda)


def test_archs_as_torch_writes_them():
    assert parse_archs("8.0;9.0a 10.0+PTX,12.0") == ("8.0", "9.0a", "10.0+PTX", "12.0")
    assert gencode(("8.0", "9.0a+PTX")) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


@pytest.mark.parametrize("text", ["Hopper", "sm_90", "8.0;9", " ; "])
def test_archs_that_are_none_are_refused(text):
    with pytest.raises(BuildError, match="TORCH_CUDA_ARCH_LIST"):
        parse_archs(text)


def test_sources_are_those_of_the_list_and_of_the_folders():
    without = ninja_file.find_sources(ROOT / "csrc", with_cuda=False)
    with_cuda = ninja_file.find_sources(ROOT / "csrc", with_cuda=True)
    assert {p.name for p in without.bindings} == {"module.cpp"}
    assert {"cpu.cpp", "plan.cpp"} <= {p.name for p in without.python}
    assert without.cuda == without.ops_cuda == ()
    assert "scan.cpp" in {p.name for p in with_cuda.ops_cuda}
    assert ROOT / "csrc/cuda/solo/sequence.cu" in with_cuda.cuda
    assert without.core
    core = tuple(p for p, _ in with_cuda.core)
    assert all(p.is_file() for p in core + with_cuda.ops_cuda + with_cuda.cuda)
    portable = ninja_file.find_sources(ROOT / "csrc", with_cuda=False, portable=True)
    assert portable == dataclasses.replace(without, bindings=())


def test_torch_free_sources_include_no_torch_header():
    sources = ninja_file.find_sources(ROOT / "csrc", with_cuda=True)
    with_torch = ("bindings", "ops", "ops_cuda", "python")
    headers = [p for p in (ROOT / "csrc").rglob("*.h") if p.parent.name not in with_torch]
    for path in [*(p for p, _ in sources.core), *sources.cuda, *headers]:
        text = path.read_text()
        for header in ("torch/", "ATen/", "c10/", "pybind11/"):
            assert f"#include <{header}" not in text, f"{path.name} includes {header}"


@pytest.mark.parametrize("folder", ["ops", "ops_cuda", "python"])
def test_what_any_torch_can_load_includes_the_stable_interface_alone(folder):
    files = [p for p in (ROOT / "csrc" / folder).iterdir() if p.suffix in (".h", ".cpp")]
    found = {line for p in files for line in p.read_text().splitlines() if "#include <" in line}
    found = {line for line in found if "/" in line}
    assert found
    stable = ("#include <torch/csrc/stable/", "#include <torch/headeronly/")
    stable += ("#include <torch/csrc/inductor/aoti_torch/generated/c_shim_",)
    assert [line for line in found if not line.startswith(stable)] == []


def test_ninja_file_compiles_each_source_once_and_names_no_openmp(tmp_path):
    made = make_recipe(clean_env({"RNNFAST_CUDA": "0"}))
    if isinstance(made, str):
        pytest.skip(f"no extension can be built here: {made}")
    paths = ninja_file.TorchPaths(("/torch/include",), ("/torch/lib",))
    text = ninja_file.write_ninja(made, paths, ROOT / "csrc", tmp_path).read_text()
    sources = ninja_file.find_sources(ROOT / "csrc", with_cuda=False)
    parts = (sources.bindings, sources.ops, sources.python)
    for source in [p for p, _ in sources.core] + [p for part in parts for p in part]:
        assert text.count(f".o: cxx {source}\n") == 1
    links = dict(
        found.split(".so: link", 1) for found in text.split("build ") if ".so: link" in found
    )
    assert list(links) == ["_cpu", "librnnfast", "_C"]
    library, cpu, module = links["librnnfast"], links["_cpu"], links["_C"]
    for part in ("ops/", "python/", "cpu/", "clip/", "gomp", "openmp", "torch", "c10"):
        assert part not in module, part
    for part in ("torch_python", "gomp", "openmp", "bindings/", ".cu.o", "ops/", "c10"):
        assert part not in cpu, part
    assert {
        "cuda/plan/plan.cpp.o",
        "python/module.cpp.o",
        "cpu/stream/avx2.cpp.o",
        "clip/cpu.cpp.o",
    } <= set(cpu.split())
    assert recipe.DEFAULT_ARCHS not in text
    for part in ("torch_python", "gomp", "openmp", "bindings/", "clip/", "stream/", "c10"):
        assert part not in library, part
    assert "ops/library.cpp.o" in library
    assert "cpu/kernels_baseline.cpp.o" in library


def test_flags_that_the_compiler_need_not_know(env, torch_with, tmp_path):
    torch_with(None)
    paths = ninja_file.TorchPaths((), ())
    compiler = tmp_path / "bin/c++"
    env["CXX"] = str(compiler)
    known = ninja_file.write_ninja(make_recipe(env), paths, ROOT / "csrc", tmp_path).read_text()
    assert "?-m" not in known
    assert "-mamx-tile" in known
    compiler.write_text("#!/bin/sh\ncase \"$*\" in *-mamx*) exit 1;; esac\necho 'fake c++ 0.9'\n")
    older = make_recipe(env)
    assert ninja_file.unknown_flags(older, ROOT / "csrc") == ["-mamx-tile", "-mamx-bf16"]
    text = ninja_file.write_ninja(older, paths, ROOT / "csrc", tmp_path).read_text()
    assert "amx-" not in text
    assert text.count("-mavx512bf16") == known.count("-mavx512bf16")


def test_the_kernels_for_amx_are_nothing_without_these_flags(tmp_path):
    compiler, reason = host.find_compiler()
    if compiler is None:
        pytest.skip(reason)
    command = [*compiler.command, "-std=c++17", f"-I{ROOT / 'csrc'}", "-c", "-o", "tiles.o"]
    source = ROOT / "csrc/cpu/tiles_amx.cpp"
    subprocess.run([*command, str(source)], cwd=tmp_path, check=True)
    assert (tmp_path / "tiles.o").stat().st_size < 10_000


def test_the_slowest_sources_are_compiled_first(env, torch_with, tmp_path):
    torch_with("13.0")
    fake_nvcc(tmp_path / "bin/nvcc", "13.0.88")
    text = ninja_file.write_ninja(
        make_recipe(env), ninja_file.TorchPaths((), ()), ROOT / "csrc", tmp_path
    ).read_text()
    names = [line.split()[1].removesuffix(".o:") for line in text.splitlines() if ".o: " in line]
    seconds = [ninja_file.expected_seconds(name) for name in names]
    assert seconds == sorted(seconds, reverse=True)
    assert names[0] == "cuda/team/backward_bf16.cu"
    for start in ninja_file.SECONDS:  # none that is no more
        assert any(name.startswith(start) for name in names), start


def test_a_digest_tells_these_sources_from_others(tmp_path):
    (tmp_path / "a.h").write_text("1")
    found = [record.digest(tmp_path)]
    (tmp_path / "a.h").write_text("2")
    found.append(record.digest(tmp_path))
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    found.append(record.digest(tmp_path))
    assert len(set(found)) == 3
    assert record.digest(tmp_path) == found[-1]
