"""How many generated inputs each property of `hardening` has seen, here or in all workers of pytest-xdist."""

import collections

SEEN: collections.Counter[str] = collections.Counter()
