"""How results are written: JSON that a difference of versions can be read from."""

import json
import re
from collections.abc import Mapping
from typing import Any


def compact_json(results: Mapping[str, Any]) -> str:
    """JSON with a line for each innermost list."""
    text = json.dumps(results, indent=1, allow_nan=False)
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    return flat + "\n"
