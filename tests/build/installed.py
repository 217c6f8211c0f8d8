"""An sdist or a wheel as a user installs it: by the words of docs/build.md, into an environment of
its own, where a small layer then runs. `python -m tests.build.installed dist/*` (make check-dist).

The environment sees what is installed here, torch above all, but not the rnnfast that is here. pip
has no index: what it would have to download is an error.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from rnnfast._build import host

from .support import run

SDIST = ("install", "--no-index", "--no-build-isolation")
WHEEL = ("install", "--no-index")
HIDDEN = ("rnnfast", "__editable__")  # what an editable install leaves in site-packages

RUN_A_LAYER = """
import sys, torch, rnnfast, rnnfast.deploy as deploy, rnnfast._ext as e
missing = e.why_no_cpu() or deploy.why_missing()
layer, x = rnnfast.LSTM(3, 4), torch.randn(5, 2, 3)
with rnnfast.use_backend("reference" if missing else "cpu"):
    y, (h, c) = layer(x, lengths=torch.tensor([5, 3]))
    y.sum().backward()
assert torch.isfinite(y).all() and torch.isfinite(layer.weight_hh_l0.grad).all()
rnnfast.clip_grad_norm_(layer.parameters(), 1.0)
if missing is None:
    with torch.no_grad():
        stream = rnnfast.Stream(layer)
        torch.testing.assert_close(stream(x[0, 0]), y[0, 0])
assert rnnfast.__file__.startswith(sys.prefix), rnnfast.__file__
print(e.why_missing())
print(missing)
"""


def main(files: list[str]) -> int:
    """0: each of the files installs and runs, with its extension. Else 1, and why."""
    wrong = 0
    for file in files:
        with tempfile.TemporaryDirectory(prefix="rnnfast-installed-") as folder:
            python = environment(Path(folder))
            done = install(python, Path(file).resolve())
            if done.returncode == 0:
                done = run([str(python), "-c", RUN_A_LAYER], Path(folder))
        last = (done.stdout.splitlines() or [""])[-1]
        good = done.returncode == 0 and last == "None"
        wrong += not good
        print(f"{file}: {'installs and runs, with the extension' if good else done.stdout}")
    return 1 if wrong or not files else 0


def environment(folder: Path) -> Path:
    """The Python of a new environment in which the packages of this one are, without rnnfast."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env/bin/python"
    # As after `pip install "setuptools>=77" ninja`: up to Python 3.11 venv brings an old one along.
    run([str(python), "-m", "pip", "uninstall", "-q", "-y", "setuptools"], folder)
    if ninja := host.find_ninja():
        (python.parent / "ninja").symlink_to(ninja)
    seen = folder / "seen"
    seen.mkdir()
    for site in sites():
        for path in site.iterdir():
            if not path.name.startswith(HIDDEN) and not (seen / path.name).exists():
                (seen / path.name).symlink_to(path)
    (own,) = (folder / "env").glob("lib/python*/site-packages")
    (own / "seen.pth").write_text(f"{seen}\n")
    return python


def sites() -> list[Path]:
    """The folders that hold torch, and what builds: one, unless environments see one another."""
    found = [importlib.util.find_spec(name) for name in ("torch", "setuptools")]
    assert all(spec is not None and spec.origin for spec in found), found
    return list(dict.fromkeys(Path(str(spec.origin)).parents[1] for spec in found if spec))


def install(python: Path, file: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The documented command, in an empty folder, so that no checkout is imported."""
    words = WHEEL if file.suffix == ".whl" else SDIST
    return run([str(python), "-m", "pip", *words, str(file)], python.parents[2], **env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
