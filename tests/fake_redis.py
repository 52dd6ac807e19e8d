"""fakeredis where it differs from Redis in what the chain uses."""

import importlib
from typing import Any

import lupa

# Redis gives scripts the library `bit`. Of the Luas in lupa only LuaJIT has it. It comes before fakeredis, which loads
# another one: of two, the symbols of the first are used.
with lupa.allow_lua_module_loading():
    luajit = importlib.import_module("lupa.luajit21")

import fakeredis
from fakeredis.commands_mixins import scripting_mixin

scripting_mixin.LUA_MODULE = luajit

FakeRedis = fakeredis.FakeRedis
FakeServer = fakeredis.FakeServer


class FakeAsyncRedis(fakeredis.FakeAsyncRedis):
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Answer an XREAD that names one stream several times once for each; fakeredis answers once."""
        execute: Any = super().execute_command
        if args[0] != "XREAD" or "BLOCK" in args:
            return await execute(*args, **options)
        streams = args.index("STREAMS") + 1
        count = (len(args) - streams) // 2
        replies: list[Any] = []
        for name, after in zip(args[streams : streams + count], args[streams + count :], strict=True):
            replies += await execute(*args[:streams], name, after, **options) or []
        return replies
