"""Every fault, by its name."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from tests.faults.campaign.connections import (
    cut_reply,
    cut_request,
    half_requests,
    idle_connections,
    kill_clients,
    silence,
    slow_reader,
    slow_redis,
    stop_reader,
)
from tests.faults.campaign.crashes import (
    fail_over,
    fill_disk,
    kill_redis,
    kill_replica,
    kill_server,
    start_while_loading,
    stop_redis,
    stop_replica,
    stop_server,
    tear_aof,
)
from tests.faults.campaign.moves import move_slot, split_brain
from tests.faults.campaign.refusals import (
    change_settings,
    deny_command,
    fill_memory,
    flush_scripts,
    set_back_redis_clock,
    set_back_server_clock,
)
from tests.faults.campaign.site import Kind


class Fault(NamedTuple):
    inject: Callable[[Any, random.Random], float | None]
    """Breaks something, waits until it sees that it is broken, and mends it. Takes the kind of site that it comes on.

    Returns the seconds until appends were back where that was before it was mended, else nothing.
    """
    share: int
    """How often, next to the others: what takes long is seldom."""
    sites: tuple[Kind, ...] = ("one",)


BOTH: tuple[Kind, ...] = ("one", "pair")
ANYWHERE: tuple[Kind, ...] = get_args(Kind)
FAULTS: dict[str, Fault] = {
    "SIGKILL a server": Fault(kill_server, 8, ANYWHERE),
    "SIGSTOP a server": Fault(stop_server, 8),
    "SIGKILL Redis": Fault(kill_redis, 10, BOTH),
    "SIGKILL Redis, its log torn": Fault(tear_aof, 10),
    "SIGSTOP Redis": Fault(stop_redis, 8, BOTH),
    "cut before the request arrives": Fault(cut_request, 10, BOTH),
    "cut before the reply arrives": Fault(cut_reply, 10, BOTH),
    "CLIENT KILL": Fault(kill_clients, 8, BOTH),
    "half-open connections to Redis": Fault(silence, 3),
    "half-open connections to a server": Fault(half_requests, 5),
    "10,000 idle connections": Fault(idle_connections, 3),
    "slow Redis": Fault(slow_redis, 8),
    "SCRIPT FLUSH": Fault(flush_scripts, 10, BOTH),
    "maxmemory reached": Fault(fill_memory, 8),
    "disk full": Fault(fill_disk, 8),
    "Redis' clock set back an hour": Fault(set_back_redis_clock, 8),
    "a server's clock set back an hour": Fault(set_back_server_clock, 6),
    "an SSE reader stopped": Fault(stop_reader, 6),
    "a slow SSE reader": Fault(slow_reader, 6),
    "failover to the replica": Fault(fail_over, 10, ("pair",)),
    "SIGKILL the replica": Fault(kill_replica, 4, ("pair",)),
    "SIGSTOP the replica": Fault(stop_replica, 4, ("pair",)),
    "a command denied (ACL)": Fault(deny_command, 10, BOTH),
    "Redis' settings changed": Fault(change_settings, 6),
    "started while Redis loads": Fault(start_while_loading, 6),
    "split brain": Fault(split_brain, 8, ("sentinels",)),
    "a cluster's slot moves": Fault(move_slot, 10, ("cluster",)),
}
