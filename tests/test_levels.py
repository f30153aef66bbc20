"""Who may import whom, how long files and functions may be, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_compress

ROOT = Path(hf_compress.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
IDS = [str(p.relative_to(ROOT)) for p in FILES]

BASE = {
    "errors.py", "imports.py", "output.py", "registry.py", "options.py", "plain.py", "config.py",
    "measurement/record.py",
    "measurement/schema.py", "measurement/adapter.py",
    "hub/card.py",
    "hub/scan.py", "hub/pickles.py", "report/tables.py", "report/wording.py",
} | {i for i in IDS if i.endswith("/config.py")}  # fmt: skip
MATHS = {
    "quantization/rounding.py", "distillation/losses.py", "distillation/chunked.py", "distillation/sparse.py",
    "distillation/formula.py", "distillation/reduce.py",
    "distillation/features.py", "distillation/layer_map.py",
    "pruning/schedules.py", "pruning/criteria.py",
    "pruning/select.py", "pruning/oneshot/scores.py", "pruning/oneshot/obs.py", "pruning/oneshot/repair.py",
    "pruning/oneshot/importance.py", "pruning/criterion.py", "pruning/allocation.py", "pruning/units.py",
}  # fmt: skip
GLUE = {i for i in IDS if i.startswith("training/")} | {"pruning/callback.py"}
OUTSIDE = {i for i in IDS if i.startswith(("recipes/", "search/")) and not i.endswith("config.py")} | {
    "cli.py", "cli_optimum.py", "cli_search.py", "cli_prune.py", "cli_quantize.py", "__main__.py",
    "report/plots.py", "report/training_plots.py", "report/compare.py", "report/parts_plots.py",
    "hub/push.py", "hub/pair.py", "hub/attempts.py", "hub/commit.py", "hub/explain.py", "hub/metadata.py",
}  # fmt: skip
STATE = set(IDS) - BASE - MATHS - GLUE - OUTSIDE - {i for i in IDS if i.endswith("__init__.py")}
METHODS = ("distillation", "pruning", "quantization")


def imports_of(path, module_level_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = (ROOT.parent / node.module.replace(".", "/")).is_dir() and "." in node.module
            yield from (f"{node.module}.{a.name}" for a in node.names) if is_package else [node.module]


def level(module):
    """Level of one of our modules by its dotted name; 0 for packages."""
    name = module.removeprefix("hf_compress.").replace(".", "/") + ".py"
    for rank, members in enumerate((BASE, MATHS, STATE, GLUE, OUTSIDE), 1):
        if name in members:
            return rank
    return 0


@pytest.mark.parametrize(("path", "name"), zip(FILES, IDS, strict=True), ids=IDS)
def test_a_level_imports_only_what_lies_below(path, name):
    own = level("hf_compress." + name.removesuffix(".py").replace("/", "."))
    for module in imports_of(path, module_level_only=True):
        top = module.split(".")[0]
        if own == 1:
            assert top in sys.stdlib_module_names or level(module) == 1 or module == "hf_compress", module
        if own == 2:
            assert top not in ("transformers", "accelerate", "datasets", "bitsandbytes"), module
            assert top != "hf_compress" or level(module) <= 2, module
            assert "config" not in module, module
        if own == 3:
            assert top not in ("transformers", "accelerate", "datasets", "bitsandbytes"), module
        if own in (1, 2, 3, 4) and top == "hf_compress" and level(module):
            assert level(module) <= own, f"{name} imports {module}"
    for module in imports_of(path, module_level_only=False):
        mine = name.split("/")[0]
        if mine in METHODS and module.startswith("hf_compress."):
            assert module.split(".")[1] not in set(METHODS) - {mine}, f"{name} imports {module}"


def test_only_the_glue_knows_the_trainer():
    knowing = {
        name
        for path, name in zip(FILES, IDS, strict=True)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("transformers")
        and any(a.name in ("Trainer", "TrainerCallback") for a in node.names)
    }
    assert knowing == {
        "training/mixin.py", "training/loss.py", "training/projections.py", "training/chunked.py",
        "training/trainer.py", "training/embedding.py", "training/restore.py", "training/background.py",
        "training/diverged.py",
        "recipes/progress.py",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_budgets(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name
            arguments = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
            # Methods that keep the signature of transformers are as wide as it is.
            assert len([a for a in arguments if a not in ("self", "cls")]) <= 8, node.name
        assert not isinstance(node, ast.Assert)
        if isinstance(node, ast.ExceptHandler):
            names = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)] if node.type else ["bare"]
            assert not {"bare", "Exception", "BaseException"} & set(names)


def loaded_after(code):
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print(' '.join(sys.modules))"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import hf_compress",
        "import hf_compress; hf_compress.PruningConfig(); hf_compress.CompressionConfig.from_dict({'pruning': {}})",
        "from hf_compress.measurement.record import Record; import hf_compress.hub.card, hf_compress.report.tables",
        "from hf_compress.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from hf_compress.cli import main\ntry: main(['quantize', '--help'])\nexcept SystemExit: pass",
    ],
    ids=["package", "configs", "records and cards", "help", "help of a verb"],
)
def test_light_things_import_neither_torch_nor_transformers(code):
    assert not {"torch", "transformers", "numpy", "datasets", "matplotlib"} & loaded_after(code)


def test_no_public_function_is_hidden_by_a_folder_of_its_name():
    """Importing a subpackage sets an attribute of its name on the package, over any lazy function."""
    folders = {p.name for p in ROOT.iterdir() if p.is_dir()}
    assert not folders & set(hf_compress.__all__)


def test_every_public_name_exists_and_unknown_ones_are_attribute_errors():
    assert all(getattr(hf_compress, name) is not None for name in hf_compress.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        hf_compress.prune  # noqa: B018
