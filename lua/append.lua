--[[
  append: link events to the head of the chain. Nothing else writes to it.
  All or nothing: every answer but "appended" means that nothing was written.

  KEYS[1]  events  the chain, a stream; entry id <event_id>-0
  KEYS[2]  time    index by commit time, a stream; entry id <ms>-<event_id>
  KEYS[3]  token   string: event_id of the first event of a batch hashed here (see `believed`)
  then for each event: its kind index, its source index, and its idempotency key where it has one

  ARGV[1]  believed  event_id of the head that the offered hashes were computed for
  ARGV[2]            its hash; "" when the script is to hash every event itself
  ARGV[3]  promised  event_id of the newest event that the caller has told a producer is safe; 0 for none
  ARGV[4]            its hash; "" for none
  ARGV[5]  ttl       milliseconds to remember idempotency keys for
  ARGV[6]  committed "" for now; else when each event was committed, as Unix milliseconds between commas: what is
                     restored keeps its commit times. Never before the newest of the time index, never after now
  then for each event, seven arguments:
           timestamp kind source payload
           quoted    the source as a JSON string, where that is more than the source in quotes; else ""
           hash      offered hash; "" when the script hashes
           once      "1" when KEYS holds an idempotency key for the event; else ""

  returns  {"appended", first_id, refused, prev_hash, hash ...}
               refused: the index writes that Redis refused, as text; prev_hash: the first event's;
               the hashes only when the script computed them
           {"moved", head_id, head_hash}      the head is not the believed one
           {"seen", position, event_id, ...}  these events (from 1) were appended before
           {"landed", first_id}               this very batch was appended before
  errors   HASHMISMATCH  the offered hash of the new head is not the one computed here
           CHAINBROKEN   <end> <written>: the chain ends at <end>, but <written> was written
           CHAINBROKEN   the last entry is not an event, or the promised one is gone or another
           and what Redis itself answers to a write that it cannot take (OOM, READONLY, MISCONF …)
]]
local GENESIS = string.rep('0', 64)
local STRIDE = 7
-- One hash of 4 KiB holds Redis up for 2 ms. A larger event is linked unchecked.
local CHECKED_BYTES = 4096
-- A caller asks about a lost reply for seconds; a command can be stuck in a stalled Redis for longer.
local TOKEN_MS = 600000

local events, time, token = KEYS[1], KEYS[2], KEYS[3]
local believed_id, believed_hash = tonumber(ARGV[1]), ARGV[2]
local promised_id, promised_hash = tonumber(ARGV[3]), ARGV[4]
local ttl = tonumber(ARGV[5])
local committed = ARGV[6]
local ARGUMENTS = 6
local scripted = believed_hash == ''
local count = (#ARGV - ARGUMENTS) / STRIDE

local function number(n)
  return string.format('%d', n)
end

local function head()
  local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  if not last then
    return 0, GENESIS
  end
  local id, fields = tonumber(string.match(last[1], '^(%d+)%-0$')), last[2]
  if id and #fields == 12 and fields[1] == 'timestamp' and fields[3] == 'kind' and fields[5] == 'source'
    and fields[7] == 'payload' and fields[9] == 'prev_hash' and fields[11] == 'hash' then
    return id, fields[12]
  end
  return nil, last[1]
end

local head_id, head_hash = head()
if not head_id then
  return redis.error_reply('CHAINBROKEN the last entry, ' .. head_hash .. ', is not an event')
end
if head_id < promised_id then
  return redis.error_reply('CHAINBROKEN ' .. number(head_id) .. ' ' .. number(promised_id))
end
if promised_hash ~= '' then
  local found = head_hash
  if head_id > promised_id then
    -- An older copy of the chain may have grown past it since.
    local id = number(promised_id) .. '-0'
    local entry = redis.call('XRANGE', events, id, id)[1]
    found = entry and entry[2][12]
  end
  if found ~= promised_hash then
    return redis.error_reply('CHAINBROKEN event #' .. number(promised_id) .. ' is not the one that was written')
  end
end
if scripted then
  local landed = redis.call('GET', token)
  if landed then
    return {'landed', tonumber(landed)}
  end
elseif believed_id ~= head_id or believed_hash ~= head_hash then
  return {'moved', head_id, head_hash}
end

local batch, key = {}, 3
local seen = {'seen'}
for i = 1, count do
  local at = ARGUMENTS + (i - 1) * STRIDE
  local event = {
    id = head_id + i, timestamp = ARGV[at + 1], kind = ARGV[at + 2], source = ARGV[at + 3],
    payload = ARGV[at + 4], quoted = ARGV[at + 5], hash = ARGV[at + 6],
    by_kind = KEYS[key + 1], by_source = KEYS[key + 2],
  }
  key = key + 2
  if event.quoted == '' then
    event.quoted = '"' .. event.source .. '"'
  end
  if ARGV[at + 7] == '1' then
    key = key + 1
    event.once = KEYS[key]
    local first = redis.call('GET', event.once)
    if first then
      seen[#seen + 1] = i
      seen[#seen + 1] = tonumber(first)
    end
  end
  batch[i] = event
end
if #seen > 1 then
  return seen
end

local function preimage(event)
  return '{"event_id":' .. number(event.id) .. ',"kind":"' .. event.kind .. '","payload":' .. event.payload
    .. ',"prev_hash":"' .. event.prev_hash .. '","source":' .. event.quoted
    .. ',"timestamp":"' .. event.timestamp .. '"}'
end

local prev_hash = head_hash
for i = 1, count do
  batch[i].prev_hash = prev_hash
  if scripted then
    batch[i].hash = sha256(preimage(batch[i]))
  end
  prev_hash = batch[i].hash
end
if not scripted then
  local new_head = batch[count]
  local text = preimage(new_head)
  if #text <= CHECKED_BYTES and sha256(text) ~= new_head.hash then
    return redis.error_reply('HASHMISMATCH event ' .. number(new_head.id) .. ' does not hash to ' .. new_head.hash)
  end
end

local function add(event)
  return redis.pcall('XADD', events, number(event.id) .. '-0', 'timestamp', event.timestamp, 'kind', event.kind,
    'source', event.source, 'payload', event.payload, 'prev_hash', event.prev_hash, 'hash', event.hash)
end

-- The first write decides. Redis refuses it whole when it is out of memory, read-only or cannot write its
-- log, and then lets a script that has written go on to its end.
local first = add(batch[1])
if type(first) == 'table' and first.err then
  local info = redis.call('EXISTS', events) == 1 and redis.call('XINFO', 'STREAM', events) or {}
  for i = 1, #info, 2 do
    local written = info[i] == 'last-generated-id' and tonumber(string.match(info[i + 1], '^(%d+)'))
    if written and written > head_id then
      return redis.error_reply('CHAINBROKEN ' .. number(head_id) .. ' ' .. number(written))
    end
  end
  return first
end

-- The indexes can be rebuilt from the chain, so a damaged one is reported and does not stop it.
local refused = {}
local function index(name, id)
  local reply = redis.pcall('XADD', name, id, '', '')
  if type(reply) == 'table' and reply.err then
    refused[#refused + 1] = name .. ': ' .. tostring(reply.err)
  end
end

local now = redis.call('TIME')
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local ms = 0
local newest = redis.pcall('XREVRANGE', time, '+', '-', 'COUNT', 1)[1]
if newest then
  -- The clock may be set back; commit time is not.
  ms = tonumber(string.match(newest[1], '^(%d+)'))
end
local given = string.gmatch(committed, '%d+')

local answer = {'appended', batch[1].id, '', head_hash}
for i = 1, count do
  local event = batch[i]
  if i > 1 then
    add(event)
  end
  index(event.by_kind, number(event.id) .. '-0')
  index(event.by_source, number(event.id) .. '-0')
  ms = math.max(ms, math.min(tonumber(given() or now_ms), now_ms))
  index(time, number(ms) .. '-' .. number(event.id))
  if event.once then
    redis.call('SET', event.once, number(event.id), 'PX', ttl)
  end
  if scripted then
    answer[#answer + 1] = event.hash
  end
end
if scripted then
  redis.call('SET', token, number(batch[1].id), 'PX', TOKEN_MS)
end
answer[3] = table.concat(refused, '; ')
return answer
