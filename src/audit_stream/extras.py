"""The optional parts of the package, and how to get one. Standard library only."""


def install_extra(extra: str) -> str:
    """Return what to do about an extra that is not installed.

    Names a checkout, never the package index: `audit-stream` is 0.1.0 there, the predecessor.
    """
    return f"in a checkout of audit-stream, run pip install '.[{extra}]'"
