"""A deprecation of our own making fails the suite; one inside of a library that we only call does not."""

import logging
import warnings

import pytest

OURS, THEIRS = "hf_compress.training.planted", "transformers.planted"
CODE = "import warnings\ndef act(category, level): warnings.warn('old name', category, stacklevel=level)\n"


def in_module(name, code, **names):
    """Return what `code` defines, run as the source of a module called `name`."""
    space = {"__name__": name, **names}
    exec(compile(code, f"{name}.py", "exec"), space)
    return space


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_what_our_modules_warn_of_is_an_error(category):
    with pytest.raises(category, match="old name"):
        in_module(OURS, CODE)["act"](category, 1)


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_what_a_library_says_of_our_call_is_an_error(category):
    """Libraries name the line that uses the old name (stacklevel=2)."""
    library = in_module(THEIRS, CODE)
    ours = in_module(OURS, "def use(category): act(category, 2)", act=library["act"])
    with pytest.raises(category, match="old name"):
        ours["use"](category)


def test_what_a_library_does_to_itself_is_none_of_our_making():
    with warnings.catch_warnings(record=True) as caught:
        in_module(THEIRS, CODE)["act"](FutureWarning, 1)
    assert [str(w.message) for w in caught] == ["old name"]


def test_what_a_library_logs_of_our_call_is_an_error():
    """transformers logs many of its deprecations instead of warning."""
    say = "def say(text): logger.warning(text)"
    library = in_module(THEIRS, say, logger=logging.getLogger("transformers.planted"))
    ours = in_module(OURS, "def use(): say('`old` is deprecated, use `new`')", say=library["say"])
    with pytest.raises(FutureWarning, match="`old` is deprecated"):
        ours["use"]()
    library["say"]("`old` is deprecated, use `new`")
    peft = in_module("peft.planted", "def forward(): say('`old` is deprecated')", say=library["say"])
    in_module(OURS, "def use(): forward()", forward=peft["forward"])["use"]()
