"""What the script of an append calls."""

import re

from audit_stream.scripts import source

OF_THE_SCRIPT = sorted(set(re.findall(r"redis\.p?call[(,] ?'([A-Z]+)'", source("append"))) | {"XADD"})
"""XADD it calls by a name of its own."""
