"""`optimum-cli compress` has the verbs of `hf-compress`, with the same output, errors and exit status."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
from optimum.commands.optimum_cli import main as optimum_main

import hf_compress
from hf_compress.cli import main

ROOT = Path(hf_compress.__file__).parent.parent
INSTALLED = "optimum/commands/register/register_hf_compress.py"
VERBS = ["run", "inspect", "shrink", "prune", "quantize", "export", "measure", "compare", "card", "push"]


@pytest.fixture
def optimum(monkeypatch, tmp_path_factory):
    """Return a call of `optimum-cli` in this process, with what the wheel adds in the place where optimum looks."""
    register = importlib.util.find_spec("optimum.commands.register")
    places = [] if register is None else register.submodule_search_locations
    if not any((Path(place) / Path(INSTALLED).name).is_file() for place in places):
        place = tmp_path_factory.mktemp("place")
        (place / INSTALLED).parent.mkdir(parents=True)
        shutil.copy(ROOT / "plugins" / "optimum_register.py", place / INSTALLED)
        monkeypatch.syspath_prepend(place)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *arguments])
        optimum_main()

    return call


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_what_is_installed_has_the_file_that_optimum_reads(kind, tmp_path):
    for package in ("hatchling", "editables"):
        pytest.importorskip(package, reason="builds without network")
    code = f"import sys; from hatchling.build import build_{kind}; build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert [n for n in names if n.startswith("optimum/")] == [INSTALLED]


def test_help_lists_the_verbs(optimum, capsys):
    with pytest.raises(SystemExit, match="0"):
        optimum("compress", "--help")
    text = capsys.readouterr().out
    assert "optimum-cli compress" in text
    assert all(f"\n    {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_options_of_hf_compress(verb, optimum, capsys):
    texts = []
    for call in (lambda: main([verb, "--help"]), lambda: optimum("compress", verb, "--help")):
        with pytest.raises(SystemExit, match="0"):
            call()
        texts.append(capsys.readouterr().out.replace("optimum-cli compress", "hf-compress").split())
    assert texts[0] == texts[1]


def test_what_it_prints_and_refuses_is_the_same(optimum, tmp_path, capsys):
    tiny.bert().save_pretrained(tmp_path / "model")
    assert main(["inspect", str(tmp_path / "model")]) == 0
    expected = capsys.readouterr().out
    optimum("compress", "inspect", str(tmp_path / "model"))
    assert capsys.readouterr().out == expected

    assert main(["quantize", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    expected = capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        optimum("compress", "quantize", str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert capsys.readouterr().err == expected.replace("hf-compress quantize", "optimum-cli compress quantize")

    for call in (lambda: main(["inspect"]), lambda: optimum("compress", "inspect")):
        with pytest.raises(SystemExit, match="2"):
            call()


@pytest.mark.slow
def test_an_installed_wheel_is_enough(tmp_path):
    """Built, installed into a folder of its own and run in fresh processes that see nothing else of the project."""
    pytest.importorskip("hatchling", reason="builds the wheel without network")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--quiet"]
    wheels, place = tmp_path / "wheels", tmp_path / "place"
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, ROOT], check=True)
    wheel = next(wheels.glob("*.whl"))
    subprocess.run([*pip, "install", *offline, "--no-compile", "--target", place, wheel], check=True)
    tiny.bert().save_pretrained(tmp_path / "model")

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(place)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        return done.returncode, done.stdout

    programs = (
        [sys.executable, "-m", "hf_compress"],
        [sys.executable, "-m", "optimum.commands.optimum_cli", "compress"],
    )
    where = run(sys.executable, "-c", "import hf_compress; print(hf_compress.__file__)")
    assert where == (0, f"{place / 'hf_compress' / '__init__.py'}\n")
    outputs = [run(*program, "inspect", "model") for program in programs]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == 0
    assert [run(*program, "push", "nowhere", "me/x", "--dry-run")[0] for program in programs] == [1, 1]
