"""peft's own tests of GLoRA, run against this package's class.

    pip download --no-deps --no-binary :all: peft==0.21.2 && tar xzf peft-0.21.2.tar.gz
    python experiments/peft_tests.py peft-0.21.2

In a copy of peft's ``tests/test_custom_models.py`` this package's ``GLoraConfig`` takes the place of peft's
``GloraConfig``; then every test with GLoRA in its name runs, in one thread. With peft 0.21.2: 358 passed, 8 skipped.
The sdist's release has to be the installed one. Further options go to pytest.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peft

FILE = "test_custom_models.py"
PEFTS, OURS = "    GloraConfig,\n", "from glora_search import GLoraConfig as GloraConfig\n"
STUB = "class StableDiffusionPipeline:\n    pass\n"


def patched(sdist: Path, folder: Path) -> Path:
    """A copy of peft's tests in which GloraConfig is this package's.

    Returns:
        The file to run.
    """
    tests = folder / "tests"
    shutil.copytree(sdist / "tests", tests)
    (tests / "__init__.py").touch()
    if importlib.util.find_spec("diffusers") is None:  # imported by what all of peft's tests share, not used by these
        (folder / "diffusers.py").write_text(STUB, encoding="utf-8")
    file = tests / FILE
    text = file.read_text(encoding="utf-8")
    start = text.index("from peft import (\n")
    if text.count(PEFTS, start, text.index(")\n", start)) != 1:
        raise SystemExit(f"{FILE}: does not import GloraConfig as peft 0.21.2's does")
    text = text[:start] + OURS + text[start:].replace(PEFTS, "", 1)
    file.write_text(text, encoding="utf-8")
    return file


def main() -> None:
    """Patch a copy and run it; the exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="the unpacked folder of peft's sdist")
    args, options = parser.parse_known_args()
    wanted = f"peft-{peft.__version__}"
    if args.sdist.resolve().name != wanted:
        parser.error(f"{args.sdist}: not the installed peft's sdist, whose folder is called {wanted}")
    with tempfile.TemporaryDirectory() as folder:
        file = patched(args.sdist.resolve(), Path(folder))
        root = str(Path(__file__).resolve().parent.parent)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the tensors are tiny
        environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{root}{os.pathsep}{folder}"}
        quiet = ["-q", "-p", "no:cacheprovider", "--disable-warnings"]
        command = [sys.executable, "-m", "pytest", *quiet, str(file), "-k", "glora", *options]
        raise SystemExit(subprocess.run(command, cwd=folder, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
