# SPDX-License-Identifier: BSD-3-Clause
"""`make versions` reports what it skipped and what failed."""

import subprocess
import sys

import pytest
import versions


def test_a_python_is_one_that_runs_and_is_of_that_version(tmp_path, monkeypatch):
    """pyenv's shims are on the PATH for every version, and fail for those not installed."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    stand_in = tmp_path / f"python{own}"
    stand_in.write_text("#!/bin/sh\nexit 127\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert versions.find_python(own) is None
    installed = tmp_path / "versions" / f"{own}.0" / "bin" / f"python{own}"
    installed.parent.mkdir(parents=True)
    installed.symlink_to(sys.executable)
    assert versions.find_python(own) == str(installed)
    assert versions.find_python("3.99") is None


def test_pairs_that_cannot_be_run_are_named():
    """If all are skipped, nothing has been tested, which is a failure."""
    run = subprocess.run([sys.executable, versions.__file__, "3.99:2.13"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1].startswith("3.99    2.13   0.0      skipped: there is no such Python here")
    run = subprocess.run([sys.executable, versions.__file__, "3.12"], capture_output=True, text=True)
    assert "pair must be such as 3.12:2.11 or 3.13:newest, got 3.12" in run.stderr


@pytest.mark.parametrize(("builds", "says"), [(False, "the extension does not build"), (True, "1 failed, 1 passed")])
def test_a_pair_is_run_from_a_copy_of_what_git_has(builds, says, tmp_path, monkeypatch):
    """With stubs for the programs that it calls; a stale file of an earlier copy is removed."""
    root, folder = tmp_path / "root", tmp_path / "versions"
    for name in ("kept.py", "ignored.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    (root / ".gitignore").write_text("ignored.py\n")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    calls = []

    class Done:
        returncode, stdout = 0, "3.12.1 2.11.0\n"

    original = subprocess.run

    def run(command, **options):
        if command[0] == "git":
            return original(command, **options)
        calls.append(command)
        done = Done()
        if "test" in command:
            options["stdout"].write(
                "FAILED tests/test_a.py::test - AssertionError\n1 failed, 1 passed in 2.00s\nmake: …"
            )
        done.returncode = int("test" in command or ("build" in command and not builds))
        return done

    monkeypatch.setattr(versions, "ROOT", root)
    monkeypatch.setattr(versions, "FOLDER", folder)
    monkeypatch.setattr(versions, "find_python", lambda version: "python3.12")
    monkeypatch.setattr(versions.subprocess, "run", run)
    stale = folder / "python3.12-torch2.11" / "sources" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    outcome = versions.run_pair("3.12:2.11", ["-x"])
    assert outcome.right is False
    assert outcome.said.startswith(says)
    assert sorted(path.name for path in stale.parent.iterdir()) == [".gitignore", "kept.py"]
    if builds:
        assert "FAILED tests/test_a.py::test" in outcome.said
        assert (outcome.python, outcome.torch) == ("3.12.1", "2.11.0")
        assert "torch==2.11.*" in calls[1]
        assert calls[3][-1].endswith(" -x")
