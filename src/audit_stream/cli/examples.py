"""Examples at the end of a command's help."""

HEADING = "Examples:"
COMMAND = "audit-stream "


def examples(*lines: str) -> str:
    """Return the epilog of a command: each line follows `audit-stream `, as it is typed in a shell."""
    # rich-click takes an empty line for the end of a line, and a single end of a line for a space.
    return "\n\n".join([HEADING, *(f"{COMMAND}{line}" for line in lines)])
