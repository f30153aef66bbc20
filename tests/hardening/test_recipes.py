"""Recipes that were changed, cut, poisoned: one error of ours before anything is written, soon and cheaply."""

import copy
import json
import os
import resource
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

import hf_compress
from hf_compress.errors import ConfigError, HfCompressError, RecipeError
from hf_compress.plain import read_yaml
from hf_compress.recipes.config import RecipeConfig
from hf_compress.recipes.load import load_recipe
from hf_compress.recipes.stages import check_stages

from .inputs import JUNK, PATHS, TEXTS, bad_inputs, refused

BUILTIN = sorted((Path(hf_compress.__file__).parent / "recipes" / "builtin").glob("*.yaml"))
SOURCES = [path.read_text(encoding="utf-8") for path in BUILTIN]
PLAIN = [read_yaml(text) for text in SOURCES]
BILLION = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
BOMBS = {
    "a billion laughs": BILLION + "name: *a29\n",
    "merged laughs": "a0: &a0 {a: 1}\n" + BILLION.partition("\n")[2].replace("[", "{<<: [").replace("]", "]}"),
    "an alias of itself": "name: &a [*a]\n",
    "a mapping that holds itself": "task: &t {files: *t}\n",
    "aliases in a row": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000)),
    "brackets": "name: " + "[" * 50_000,
    "braces": "name: " + "{a: " * 20_000,
    "dashes": "- " * 20_000 + "x",
    "a million items": "name: [" + "1," * 600_000 + "]",
    "a long number": "seed: " + "9" * 10_000,
    "a key twice": "name: a\nname: b\n",
    "python": "name: !!python/object/apply:os.system ['touch trace']\n",
    "python module": "name: !!python/name:os.system\n",
    "bytes": "name: !!binary aGk=\n",
    "a date that is none": "name: !!timestamp 2020-99-99\n",
    "a number that is none": "seed: !!int many\n",
    "a truth that is none": "seed: !!bool maybe\n",
    "a list for a number": "seed: !!int [1]\n",
    "two documents": "name: a\n---\nname: b\n",
    "no mapping": "just text",
    "nothing": "",
    "NUL": "name: a\0b",
    "a tab": "name:\n\t- x",
}  # fmt: skip


def places(data, path=()):
    """Return the path of every value in nested data."""
    found = [path]
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def mutated(draw):
    """A built-in recipe in which some values are deleted, replaced, doubled or wrapped."""
    data = {"recipe": copy.deepcopy(draw(st.sampled_from(PLAIN)))}
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        *path, last = draw(st.sampled_from([p for p in places(data) if p]))
        holder = data
        for key in path:
            holder = holder[key]
        action = draw(st.sampled_from(["delete", "replace", "path", "wrap", "copy"]))
        if action == "delete":
            del holder[last]
        elif action == "replace":
            holder[last] = draw(JUNK)
        elif action == "path":
            holder[last] = draw(st.sampled_from(PATHS))
        elif action == "wrap":
            holder[last] = [holder[last]]
        elif isinstance(holder, dict):
            holder[draw(TEXTS)] = copy.deepcopy(holder[last])
        else:
            holder.append(copy.deepcopy(holder[last]))
    return data.get("recipe")


def check(recipe):
    config = load_recipe(recipe)
    check_stages(config)
    return config


@bad_inputs(mutated(), few=80, many=2500)
def test_a_changed_recipe_runs_or_is_refused(recipe):
    config = refused(check, recipe)
    if isinstance(config, RecipeConfig):
        assert RecipeConfig.from_dict(read_yaml(config.to_yaml())) == config
        # Each stage writes a folder below the run's, and nowhere else.
        for name in (config.name, *(s.name for s in config.stages)):
            assert Path(os.path.normpath(Path("/run", name))).parent == Path("/run")
            assert len(name) < 200


@st.composite
def torn(draw):
    """Bytes of a built-in recipe, cut, with bytes replaced, lines doubled or snippets of YAML in between."""
    text = draw(st.sampled_from(SOURCES)).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        piece = draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [b"&a ", b"*a ", b"!!python/none ", b"<<: *a\n", b"? ", b": ", b"\t", b"- ", b"{", b"[", b"'"]
                ),
                st.sampled_from(text.split(b"\n")),
            )
        )
        text = text[:at] + piece + text[at + draw(st.integers(0, 40)) :]
    return text


@bad_inputs(torn(), few=100, many=1500)
def test_a_torn_file_is_read_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torn.yaml"
        path.write_bytes(data)
        refused(load_recipe, path)


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_bombs_and_code_are_refused_cheaply(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.yaml").write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ConfigError, RecipeError)) as caught:
        load_recipe(tmp_path / "bomb.yaml")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KB
    assert len(str(caught.value)) < 5000
    assert [p.name for p in tmp_path.iterdir()] == ["bomb.yaml"]


def test_anchors_as_people_use_them_are_read():
    text = "base: &b {x: 1, y: [2]}\nmore: {<<: *b, x: 3}\nlist: [*b, *b]\n"
    assert read_yaml(text) == yaml.safe_load(text)


@bad_inputs(
    st.tuples(
        st.sampled_from(PLAIN),
        st.lists(
            st.one_of(
                TEXTS,
                st.from_regex(r"\A(name|seed|task|stages|measure)(\.(teacher|student|0|files|x|arguments))*=.{0,6}\Z"),
            ),
            max_size=3,
        ),
    ),
    few=150,
    many=1500,
)
def test_any_override_is_taken_or_refused(value):
    data, overrides = value
    refused(load_recipe, data, overrides)


@pytest.mark.parametrize(
    "recipe",
    [*PATHS, None, 5, [], b"x", {1: 2}, {"name": object()}, {"seed": 10**5000}],
    ids=lambda r: str(type(r).__name__),
)
def test_what_is_no_recipe_is_refused(recipe):
    with pytest.raises(HfCompressError):
        load_recipe(recipe)


def test_a_mapping_that_holds_itself_is_refused():
    data = {"name": "x"}
    data["task"] = data
    with pytest.raises(RecipeError, match="nested"):
        load_recipe(data)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("what", ["run", "stage"])
def test_no_name_leads_out_of_the_folder_of_the_run(name, what):
    data = json.loads(json.dumps(PLAIN[0]))
    if what == "run":
        data["name"] = name
    else:
        data["stages"][-1]["name"] = name
    if (what, name) == ("run", "CON"):
        return
    with pytest.raises(HfCompressError):
        check(data)
