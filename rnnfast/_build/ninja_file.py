"""Writing build.ninja: which source is compiled how, and what is linked."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .host import knows
from .nvcc import toolkit_root
from .recipe import Recipe, gencode
from .schemas import INPUTS, SCHEMAS

WARNINGS = ("-Wall", "-Wextra")
OLDEST_TORCH = (2, 11)  # that librnnfast.so runs with, whichever it is compiled against
OLDEST_PYTHON = (3, 10)  # that _cpu runs with, likewise
# Of the core, what each library has no use for.
OPS_WITHOUT = ("cuda/", "clip/", "cpu/stream/")
CUDA_WITHOUT = ("clip/", "cpu/")
SHARED_CHECKS = "ops/checks.cpp.o"  # that librnnfast_cuda.so has of librnnfast.so's
# Seconds of a core, for two architectures, by the beginning of the path in csrc; what is not named
# takes less than 10. ninja starts what it can in the order of its file: with many cores a build
# waits for the slowest source, which must not come last.
SECONDS = {
    "cuda/team/backward_bf16": 117,
    "cuda/team/backward_f16": 117,
    "cuda/team/": 85,
    "cuda/solo/backward_bf16": 57,
    "cuda/solo/backward_f16": 57,
    "cuda/solo/": 47,
    "cpu/kernels_": 35,
    "bindings/": 20,
    "python/": 12,
    "ops/": 12,
    "ops_cuda/": 12,
    "clip/cuda": 20,
}


@dataclass(frozen=True)
class TorchPaths:
    """What torch.utils.cpp_extension says of the installed torch."""

    include: tuple[str, ...]
    library: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    # No torch headers: C++17; flags of its own, "?" before those that a compiler need not know.
    core: tuple[tuple[Path, tuple[str, ...]], ...]
    bindings: tuple[Path, ...]  # pybind11's headers
    ops: tuple[Path, ...]  # those of torch's stable ABI
    ops_cuda: tuple[Path, ...]  # the same
    python: tuple[Path, ...]  # the same, and Python's limited API
    cuda: tuple[Path, ...]  # .cu, no torch headers


def find_sources(csrc: Path, with_cuda: bool, portable: bool = False) -> Sources:
    """The lines of csrc/sources.txt, the .cpp of bindings, ops, ops_cuda and python, and all *.cu.

    ops_cuda and the .cu files are left out without CUDA, bindings if `portable`.
    """
    lines = (csrc / "sources.txt").read_text().splitlines()
    words = [found for line in lines if (found := line.split("#")[0].split())]
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    listed = [(csrc / name, tuple(flags) if on_x86 else ()) for name, *flags in words]
    return Sources(
        core=tuple(listed),
        bindings=() if portable else tuple(sorted(csrc.glob("bindings/*.cpp"))),
        ops=tuple(sorted(csrc.glob("ops/*.cpp"))),
        ops_cuda=tuple(sorted(csrc.glob("ops_cuda/*.cpp"))) if with_cuda else (),
        python=tuple(sorted(csrc.glob("python/*.cpp"))),
        cuda=tuple(sorted(csrc.rglob("*.cu"))) if with_cuda else (),
    )


def write_ninja(recipe: Recipe, paths: TorchPaths, csrc: Path, folder: Path) -> Path:
    """Write `folder`/build.ninja, which links _cpu.so, librnnfast.so, with CUDA librnnfast_cuda.so
    and, unless the build is to be portable, _C.so; its path is returned."""
    sources = find_sources(csrc, recipe.nvcc is not None, recipe.portable)
    headers = [*paths.include, str(recipe.python_include)]
    binding_flags = ["-std=c++17", *(f"-isystem{p}" for p in headers)]
    lines = [
        _rule(
            "cxx", [*recipe.compiler.command, "-MMD", "-MF", "$out.d", *cxx_flags(recipe), "$flags"]
        ),
        _rule("link", [*recipe.compiler.command, "-shared", "$in", "-o", "$out", "$flags"], "$in"),
    ]
    if recipe.nvcc is not None:
        nvcc = [str(recipe.nvcc.path), "-MD", "-MF", "$out.d", *cuda_flags(recipe)]
        lines.append(_rule("nvcc", nvcc))
    compiled: list[tuple[int, str]] = []
    edges = [
        (source, "cxx", ["-std=c++17", *known_flags(recipe, flags)])
        for source, flags in sources.core
    ]
    edges += [(source, "cxx", binding_flags) for source in sources.bindings]
    edges += [(source, "cxx", _ops_flags(recipe, paths)) for source in sources.ops]
    edges += [(source, "cxx", _cuda_ops_flags(recipe, paths)) for source in sources.ops_cuda]
    edges += [(source, "cxx", _python_flags(recipe, paths)) for source in sources.python]
    edges += [(source, "nvcc", []) for source in sources.cuda]
    for source, rule, flags in edges:
        name = str(source.relative_to(csrc))
        edge = _edge(f"{name}.o", rule, [str(source)], [f"-I{csrc}", *flags])
        compiled.append((expected_seconds(name), edge))
    lines += [edge for _, edge in sorted(compiled, key=lambda pair: -pair[0])]

    def objects(*parts: Iterable[Path]) -> list[str]:
        return [f"{source.relative_to(csrc)}.o" for part in parts for source in part]

    def core(without: tuple[str, ...]) -> list[str]:
        return [n for n in objects(s for s, _ in sources.core) if not n.startswith(without)]

    linked = {
        "_cpu.so": (core(()) + objects(sources.python), stable_link_flags(paths)),
        "librnnfast.so": (core(OPS_WITHOUT) + objects(sources.ops), ops_link_flags(paths)),
    }
    if recipe.nvcc is not None:
        checks = [name for name in objects(sources.ops) if name == SHARED_CHECKS]
        parts = core(CUDA_WITHOUT) + checks + objects(sources.ops_cuda, sources.cuda)
        linked["librnnfast_cuda.so"] = parts, cuda_link_flags(recipe, paths)
    if not recipe.portable:
        linked["_C.so"] = core(CUDA_WITHOUT) + objects(sources.bindings), []
    lines += [_edge(out, "link", parts, flags) for out, (parts, flags) in linked.items()]
    path = folder / "build.ninja"
    text = "\n".join(["ninja_required_version = 1.5", *lines, ""])
    if not path.is_file() or path.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def expected_seconds(name: str) -> int:
    """How long the source of this path in csrc is known to compile; 0 where it does not matter."""
    return next((SECONDS[start] for start in SECONDS if name.startswith(start)), 0)


def known_flags(recipe: Recipe, flags: Iterable[str]) -> list[str]:
    """A source's flags, of those with a question mark what the compiler knows."""
    asked = ((flag.removeprefix("?"), flag.startswith("?")) for flag in flags)
    return [flag for flag, optional in asked if not optional or knows(recipe.compiler, flag)]


def unknown_flags(recipe: Recipe, csrc: Path) -> list[str]:
    """The flags with a question mark that are left out."""
    asked = (flag for _, flags in find_sources(csrc, with_cuda=False).core for flag in flags)
    optional = dict.fromkeys(flag[1:] for flag in asked if flag.startswith("?"))
    return [flag for flag in optional if not knows(recipe.compiler, flag)]


def cxx_flags(recipe: Recipe) -> list[str]:
    """The flags that every C++ source gets."""
    mode = (
        ["-O0", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"] if recipe.debug else ["-O3", "-DNDEBUG"]
    )
    return [*mode, "-fPIC", "-fopenmp", "-fvisibility=hidden", *WARNINGS]


def cuda_flags(recipe: Recipe) -> list[str]:
    """The flags that every .cu source gets."""
    host = recipe.compiler.command[-1] if len(recipe.compiler.command) == 1 else "c++"
    mode = ["-O0", "-g", "-G"] if recipe.debug else ["-O3", "-DNDEBUG", "-lineinfo"]
    return [
        f"-ccbin={host}",
        "-std=c++17",
        *mode,
        *gencode(recipe.archs),
        *_compressed(recipe),
        *(["-DRNNFAST_FAST_TANH"] if recipe.fast_tanh else []),
        "-Xcompiler=" + ",".join(["-fPIC", "-fvisibility=hidden", *WARNINGS]),
    ]


def _compressed(recipe: Recipe) -> list[str]:
    """Device code as small as nvcc makes it: a sixth of its default, at the price of unpacking a
    kernel's module once when it is first loaded."""
    assert recipe.nvcc is not None
    version = tuple(int(part) for part in recipe.nvcc.version.split(".")[:2])
    return ["-compress-mode=size"] if version >= (12, 8) else ["-Xfatbin=-compress-all"]


def stable_link_flags(paths: TorchPaths) -> list[str]:
    """For what runs with every torch: torch's library alone, without Python's. OpenMP's functions
    are those of the runtime that torch has loaded; its file is not named, since it has another name
    in some builds of torch."""
    return [*(f"-L{p}" for p in paths.library), "-ltorch_cpu"]


def ops_link_flags(paths: TorchPaths) -> list[str]:
    """For librnnfast.so. It is never unloaded, since an op's definition can't be taken back."""
    return [*stable_link_flags(paths), "-Wl,-soname,librnnfast.so", "-Wl,-z,nodelete"]


def cuda_link_flags(recipe: Recipe, paths: TorchPaths) -> list[str]:
    """For librnnfast_cuda.so: torch's libraries and its CUDA runtime.

    That by file name where torch brings its own: the pip wheel has a libcudart.so.13 but no
    libcudart.so for `-lcudart` to find. No rpath: torch is imported first and has loaded them all
    by then.
    """
    assert recipe.nvcc is not None
    cudart, root = recipe.torch.cudart_library(), toolkit_root(recipe.nvcc)
    system = [f"-L{root / 'lib64'}", f"-L{root / 'lib'}", "-lcudart"]
    named = ["-Wl,-soname,librnnfast_cuda.so", "-Wl,-z,nodelete"]
    return [
        *stable_link_flags(paths),
        "-ltorch_cuda",
        *([str(cudart)] if cudart else system),
        *named,
    ]


def stable_target() -> str:
    """The flag that leaves of torch's stable ABI what the oldest torch has."""
    major, minor = OLDEST_TORCH
    return f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"


def _stable_flags(recipe: Recipe, paths: TorchPaths) -> list[str]:
    headers = [f"-isystem{p}" for p in paths.include]
    return [f"-std={recipe.torch.cxx_standard}", stable_target(), *headers]


def _ops_flags(recipe: Recipe, paths: TorchPaths) -> list[str]:
    schemas = ", ".join(f'"{schema}"' for schema in SCHEMAS)
    return [*_stable_flags(recipe, paths), f"-DRNNFAST_SCHEMAS={schemas}"]


def _cuda_ops_flags(recipe: Recipe, paths: TorchPaths) -> list[str]:
    """With the folder of cuda_runtime_api.h: nvcc's own, so that both compilers agree."""
    assert recipe.nvcc is not None
    headers = f"-isystem{toolkit_root(recipe.nvcc) / 'include'}"
    inputs = f'-DRNNFAST_INPUTS="{INPUTS}"'
    return [*_stable_flags(recipe, paths), "-DUSE_CUDA", inputs, headers]


def _python_flags(recipe: Recipe, paths: TorchPaths) -> list[str]:
    major, minor = OLDEST_PYTHON
    limited = f"-DPy_LIMITED_API=0x{major:02x}{minor:02x}0000"
    return [*_stable_flags(recipe, paths), limited, f"-isystem{recipe.python_include}"]


def _rule(name: str, command: Iterable[str], tail: str = "") -> str:
    words = " ".join(w if w.startswith("$") else _quote(w) for w in command)
    if name == "link":
        return f"rule {name}\n  command = {words}\n  description = link $out"
    return (
        f"rule {name}\n  command = {words} $flags -c $in -o $out\n"
        f"  depfile = $out.d\n  deps = gcc\n  description = {name} $out"
    )


def _edge(out: str, rule: str, inputs: Iterable[str], flags: Iterable[str]) -> str:
    ins = " ".join(_escape_path(i) for i in inputs)
    words = " ".join(_quote(f) for f in flags)
    return f"build {_escape_path(out)}: {rule} {ins}\n  flags = {words}"


def _quote(word: str) -> str:
    return shlex.quote(word).replace("$", "$$")


def _escape_path(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
