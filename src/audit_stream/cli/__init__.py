"""audit-stream: the command line."""

import logging
import os
import sys

from audit_stream.errors import Misconfigured
from audit_stream.server.run import serve


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    try:
        sys.exit(serve(dict(os.environ), workers=int(os.environ.get("W", "1"))))
    except Misconfigured as e:
        print(e, file=sys.stderr)
        sys.exit(2)
