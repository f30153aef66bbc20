"""The README tells the truth: its example runs, its table and map are real."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_compress import DistillationConfig, PruningConfig, compare

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_drop_in_example_has_at_most_20_lines_and_runs(tmp_path):
    code = re.search(r"<!-- a test runs this block -->\n```python\n(.*?)```", README, re.S).group(1)
    assert len(code.splitlines()) <= 20
    quick = code.replace("num_train_epochs=4", "max_steps=3")
    assert quick != code
    done = subprocess.run([sys.executable, "-c", quick], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "compressed" / "quantized" / "config.json").is_file()


def test_the_table_is_the_one_that_the_recorded_run_printed():
    assert compare(ROOT / "model_cards" / "digits" / "records").strip() in README


def test_every_folder_of_the_map_exists_and_none_is_missing():
    listed = set(re.findall(r"^\| `([\w/]+)` \|", README.split("## Where things are")[1], re.M))
    folders = {f"hf_compress/{p.name}" for p in (ROOT / "hf_compress").iterdir() if (p / "__init__.py").is_file()}
    assert listed == folders | {"scripts", "model_cards", "tests"}


def test_the_table_of_pruning_names_what_there_is():
    from hf_compress.pruning.allocation import SCOPES
    from hf_compress.pruning.criteria import CRITERIA
    from hf_compress.pruning.schedules import CURVES

    section = README.split("## Gradual pruning")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M))
    for field, registry in (("criterion", CRITERIA), ("scope", SCOPES), ("schedule", CURVES)):
        assert {f"`{name}`" for name in registry} <= set(re.findall(r"`\w+`", rows[field])), field
    assert rows.keys() <= {f.name for f in dataclasses.fields(PruningConfig)}


def test_the_table_of_distillation_names_what_there_is():
    from hf_compress.distillation.layer_map import LAYER_MAPS
    from hf_compress.distillation.losses import DIVERGENCES

    section = README.split("## Distillation")[1].split("## ")[0]
    rows = {
        name: set(re.findall(r"`(\w+)`", text))
        for names, text in re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert set(DIVERGENCES) <= rows["divergence"]
    assert {*LAYER_MAPS, "kept"} <= rows["layer_map"]
    fields = {f.name for f in dataclasses.fields(DistillationConfig)}
    assert rows.keys() <= fields
    basics = {"temperature", "task_weight", "logit_weight", "divergence_options", "hidden_loss", "relation_heads"}
    assert fields - rows.keys() - basics <= {"on_policy_tokens", "on_policy_temperature"}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text())
    assert all((ROOT / link).exists() for link in links), links


def test_the_recipe_in_the_readme_is_valid():
    import yaml

    from hf_compress.recipes.load import load_recipe
    from hf_compress.recipes.stages import check_stages

    text = re.search(r"```yaml\n(.*?)```", README, re.S).group(1)
    check_stages(load_recipe(yaml.safe_load(text)))


def test_the_first_thing_in_the_readme_are_the_two_commands_of_the_makefile():
    first = re.search(r"```bash\n(.*?)```", README, re.S).group(1)
    commands = re.findall(r"^make (\w+)", first, re.M)
    assert commands == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{c}:", makefile, re.M) for c in commands)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
