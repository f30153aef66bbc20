"""Which optional packages are here, found without importing them.

Level: base.
"""

from __future__ import annotations

import importlib.util
from functools import cache

from hf_compress.errors import MissingDependencyError

# Where the pip name is not the import name.
_PIP_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "lm_eval": "lm-eval"}


@cache
def is_available(package: str) -> bool:
    """Say whether `package` (its import name) is installed."""
    return importlib.util.find_spec(package) is not None


def require(package: str, purpose: str) -> None:
    """Raise unless `package` is installed.

    Args:
        package: import name.
        purpose: what it is needed for, completing "... is needed for ...".

    Raises:
        MissingDependencyError: with the pip line that installs it.
    """
    if not is_available(package):
        pip_name = _PIP_NAMES.get(package, package)
        raise MissingDependencyError(
            f"{pip_name} is needed for {purpose} and is not installed; install it with: pip install {pip_name}"
        )
