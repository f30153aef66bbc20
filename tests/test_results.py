"""The page of results says what its records say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_number_on_the_page_is_that_of_its_record(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "scripts" / "make_results.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    # Drawn elsewhere: the pictures in the repository depend on the version of matplotlib.
    monkeypatch.setattr(made, "save_plot", lambda axes, path: path)
    assert made.page() == (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert all((ROOT / part.split(")")[0]).exists() for part in made.page().split("](")[1:])
