--[[
  read_end: how the chain and its indexes end, all of it at one moment. Writes nothing.
  A MULTI would do the same, but a Redis that is out of memory refuses what comes in one, reads included.

  KEYS[1]  events  the chain
  then     the indexes to look at

  ARGV[1]  after   event_id
  ARGV[2]  count   how many events after it to read at most

  returns  {entries, last_id, length, newest, length, newest ...}
               last_id: the highest entry id that the chain ever had, "" where there is no chain;
               for each index how many entries it has, -1 where it is not a stream, and the id of its newest, "" for none
]]
local events = KEYS[1]

local last_id = ''
local info = redis.pcall('XINFO', 'STREAM', events)
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    last_id = info[i + 1]
  end
end

local answer = {redis.call('XRANGE', events, '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2]), last_id}
for i = 2, #KEYS do
  local length = redis.pcall('XLEN', KEYS[i])
  if type(length) == 'number' then
    local newest = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
    answer[#answer + 1] = length
    answer[#answer + 1] = newest and newest[1] or ''
  else
    answer[#answer + 1] = -1
    answer[#answer + 1] = ''
  end
end
return answer
