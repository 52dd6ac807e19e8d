"""The bus against the published one, hummbl-governance: no fsync, no chain, and no signature unless asked for."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.envs import python_of
from benchmarks.processes import HERE, Child, a_child, a_folder
from benchmarks.session import Session
from benchmarks.table import Line, Target

PUBLISHED = "hummbl_governance.coordination_bus"
OURS = "audit_stream.bus"
KEY = "k:" + "5e" * 32


def against_published(session: Session) -> list[Line]:
    count = session.scale.bus_messages
    synced = max(1, count // 20)  # each of them waits for the disk
    with a_folder() as folder, ExitStack() as stack:

        def bus(name: str, python: str, module: str, **arguments: str) -> Child:
            script, file = str(HERE / "peers" / "bus.py"), str(folder / name)
            return stack.enter_context(a_child(python, script, module, file, json.dumps(arguments)))

        ours = bus("ours", sys.executable, OURS, fsync="never")
        signed = bus("signed", sys.executable, OURS, fsync="never", key=KEY)
        always = bus("always", sys.executable, OURS, fsync="always")
        theirs = bus("theirs", python_of("bus"), PUBLISHED)
        posted = session.take_turns(
            {
                "ours": _rate(ours, "post", count),
                "signed": _rate(signed, "post", count),
                "always": _rate(always, "post", synced),
                "theirs": _rate(theirs, "post", count),
            }
        )
        # The round for warming up has been posted as well.
        there = count * (session.scale.rounds + (session.scale.rounds > 1))
        read = session.take_turns(
            {
                "ours": _rate(ours, "read", there),
                "verify": _rate(ours, "verify", there),
                "signed": _rate(signed, "verify", there),
                "theirs": _rate(theirs, "read", there),
            }
        )
    peer = "published bus"
    return [
        Line("bus: post, no fsync on either side", "posts/s", posted["ours"], peer, posted["theirs"], Target("≥", 1.5)),
        Line("bus: post, no fsync, signed", "posts/s", posted["signed"], f"{peer}, not signed", posted["theirs"]),
        Line("bus: post, fsync always", "posts/s", posted["always"], f"{peer}, no fsync", posted["theirs"]),
        Line("bus: read_all", "lines/s", read["ours"], peer, read["theirs"], note="ours checks each line's hash"),
        Line("bus: verify", "lines/s", read["verify"], f"{peer}: read_all, it has no verify", read["theirs"]),
        Line("bus: verify, with every signature", "lines/s", read["signed"]),
    ]


def _rate(bus: Child, do: str, count: int) -> Callable[[], float]:
    return lambda: count / float(bus.ask(do=do, count=count)["seconds"])
