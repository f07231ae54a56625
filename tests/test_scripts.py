"""scripts/launch and scripts/fix, as people call them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


def run(command, folder):
    return subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path):
    """A small repository with the scripts and the tools of this one; its setup does nothing."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts", symlinks=True)
    shutil.copytree(ROOT / "tests" / "node", tmp_path / "tests" / "node")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "scripts" / "setup").write_text("#!/bin/sh\necho Setting up\n")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "broker" / "web").mkdir(parents=True)
    return tmp_path


def test_every_link_has_its_python_file():
    """So that no command is a name alone."""
    links = [path for path in SCRIPTS.iterdir() if path.is_symlink()]
    assert len(links) > 10
    for link in links:
        assert link.readlink() == Path("launch")
        assert (SCRIPTS / f"{link.name.replace('-', '_')}.py").is_file()


def test_the_launcher_starts_the_file_of_its_name(tree):
    """In the root, with the arguments as they are; what setup prints stays out of the output."""
    (tree / "scripts" / "some_name.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['CALLED_FROM'])\n"
    )
    (tree / "scripts" / "some-name").symlink_to("launch")
    folder = tree / "broker"
    done = run(["../scripts/some-name", "two words", "--flag"], folder)
    assert done.stdout == f"['two words', '--flag'] {tree} {folder}\n"
    assert done.stderr == "Setting up\n"


def test_the_launcher_by_its_own_name_starts_nothing(tree):
    """Exit 2, and a sentence."""
    done = run(["scripts/launch"], tree)
    assert (done.returncode, done.stdout) == (2, "")
    assert "scripts/*.py" in done.stderr


def test_fix_formats_and_repairs(tree):
    """Python and JavaScript; what it cannot repair, it leaves to scripts/lint."""
    (tree / "one.py").write_text("import sys, os\nprint( os.sep )\n")
    (tree / "broker" / "web" / "one.js").write_text("var a = 'b'\nexport {a, none}\n")
    done = run(["scripts/fix"], tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tree / "one.py").read_text() == "import os\n\nprint(os.sep)\n"
    (tree / "broker" / "web" / "one.js").write_text("var a = 'b'\nexport {a}\n")
    assert run(["scripts/fix"], tree).returncode == 0
    assert (tree / "broker" / "web" / "one.js").read_text() == ('const a = "b";\nexport { a };\n')


def test_the_demo_takes_a_path_as_its_caller_means_it(tree):
    """Relative to the folder that it is called in, and not to the repository's root."""
    shutil.copytree(ROOT / "schemas", tree / "schemas")
    done = run(["../scripts/demo", "none.mp4"], tree / "broker")
    assert done.returncode == 2
    assert str(tree / "broker" / "none.mp4") in done.stdout.replace("\n", "")


def test_the_gpu_benchmark_runs_on_the_pretend_device():
    """So that it is known to work before a card is there; its figures mean nothing."""
    done = run([sys.executable, SCRIPTS / "bench_gpu.py", "--pretend", "--stages", "ACD"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    for stage in "ACD":
        assert len([name for name in figures if name.startswith(f"{stage}.")]) >= 6
    assert False not in [value for name, value in figures.items() if name.startswith("A.")]
