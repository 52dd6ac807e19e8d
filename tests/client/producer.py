"""A process that appends by way of a spool until it is killed: `python -m tests.client.producer URL SPOOL NAME`.

Prints the number of each event once it has been told that it is kept.
"""

import itertools
import sys

from audit_stream.client import AuditClient

if __name__ == "__main__":
    url, spool, name = sys.argv[1:]
    client = AuditClient(url, spool=spool, patience_s=0)
    for number in itertools.count(1):
        client.append("other", name, {"n": number})
        print(number, flush=True)
