"""Loading an adapter folder."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import glora_search.adapters.load
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known
print({str(getattr(name, "value", name)) for name in known} >= {"GLORA_PATHS", "GLORA_SUPERNET"})
"""


def test_whoever_loads_adapters_knows_both_types():
    """A process that helps a search does not make a supernet, and loads one."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"
