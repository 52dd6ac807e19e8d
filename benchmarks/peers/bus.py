"""One BusWriter, ours or the published one, which has the same face: runs in the environment of either.

    bus.py MODULE FILE ARGUMENTS      ARGUMENTS: JSON, for the constructor
One line in, `{"do": "post" | "read" | "verify", "count": N}`; one line out, `{"seconds": ...}`.
"""

import json
import sys
import time
from importlib import import_module

module, path, arguments = sys.argv[1:]
bus = import_module(module).BusWriter(path, **json.loads(arguments))
print(json.dumps({"file": path}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    began = time.perf_counter()
    if asked["do"] == "post":
        for number in range(asked["count"]):
            bus.post("agent-claude-1", "all", "STATUS", f"Step {number} of the task is done, and nothing is left over")
    elif asked["do"] == "read":
        assert len(bus.read_all()) == asked["count"]
    else:
        verdict = bus.verify()
        assert verdict.valid
        assert verdict.checked == asked["count"]
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
