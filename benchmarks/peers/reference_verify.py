"""The reference's verify_chain on a chain in memory; runs in the reference's environment.

One line in, `{"events": N}` at the start, then anything for each run; one line out, `{"seconds": …}`.
"""

import asyncio
import json
import sys
import time
from importlib import import_module

# Not our package: the reference has the same name.
models, store = import_module("audit_stream.models"), import_module("audit_stream.store")


async def main() -> None:
    events, body = int(sys.argv[1]), json.loads(sys.argv[2])
    chain = store.AuditStore()
    for _ in range(events):
        await chain.append(models.PublishRequest(**body))
    print(json.dumps({"events": events}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        result = await chain.verify_chain()
        took = time.perf_counter() - began
        assert result.valid
        assert result.checked == events
        print(json.dumps({"seconds": took}), flush=True)


asyncio.run(main())
