--[[
  append: link events to the head of the chain. Nothing else writes to it.
  Whole or absent: every answer but "appended" means that nothing was written, and so does every error.

  KEYS[1]  events  the chain, a stream; entry id <event_id>-0
  KEYS[2]  time    index by commit time, a stream; entry id <ms>-<event_id>
  KEYS[3]  token   string: event_id of the first event of a batch hashed here (see `believed`);
                   in a dry run a key that is never written
  then for each event: its kind index, its source index, and where it has an idempotency key, two keys for that:
           shared  of the first source that uses the idempotency key
           own     of this source alone; used where the shared one is another source's

  ARGV[1]  believed   event_id of the head that the offered hashes were computed for
  ARGV[2]             its hash; "" when the script is to hash every event itself
  ARGV[3]  promised   event_id of the newest event that the caller has told a producer is safe; 0 for none
  ARGV[4]             its hash; "" for none
  ARGV[5]  ttl        milliseconds to remember idempotency keys for
  ARGV[6]  committed  commit times to restore: Unix milliseconds separated by commas, one per event; "" for now
  then for each event, seven arguments:
           timestamp kind source payload
           quoted    the source as a JSON string, where that is more than the source in quotes; else ""
           hash      offered hash; "" when the script hashes
           once      "2" when KEYS holds the keys of an idempotency key for the event; "" without one;
                     "1" when it holds the shared one alone, which then counts whatever source it is of
  without any event it is a dry run: every check that an append makes, and every command, and no write

  returns  {"appended", first_id, refused, prev_hash, hash ...}
               refused: the index writes that Redis refused, as text; prev_hash: the first event's;
               the hashes only when the script computed them
           {"moved", head_id, head_hash}      the head is not the believed one
           {"seen", position, event_id, ...}  these events (from 1) were appended before
           {"landed", first_id}               this very batch was appended before
           {"ready", head_id, head_hash}      the dry run found nothing that would refuse an append
  errors   HASHMISMATCH  the offered hash of the new head is not the one computed here
           CHAINBROKEN   <end> <written>: the chain ends at <end>, but <written> was written
           CHAINBROKEN   the last entry is not an event, or the promised one is gone or another
           and what Redis itself answers to a command that it refuses (OOM, READONLY, NOPERM …)
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

-- The chain once went further than its head: its end was cut off, and Redis takes no event there.
local function cut_end()
  local info = redis.pcall('XINFO', 'STREAM', events)
  for i = 1, #info, 2 do
    local written = info[i] == 'last-generated-id' and tonumber(string.match(info[i + 1], '^(%d+)'))
    if written and written > head_id then
      return redis.error_reply('CHAINBROKEN ' .. number(head_id) .. ' ' .. number(written))
    end
  end
end

if count == 0 then
  local broken = cut_end()
  if broken then
    return broken
  end
  -- Redis refuses a command before it looks at its arguments, so these are refused exactly when an append's are.
  -- SET with XX changes no key that does not exist, and no entry of a stream can have the id 0-0.
  redis.call('GET', token)
  redis.call('TIME')
  redis.call('XRANGE', events, '0-1', '0-1')
  redis.call('SET', token, '', 'XX')
  local add = redis.pcall('XADD', events, '0-0', '', '')
  if type(add) == 'table' and add.err and not string.find(add.err, '0-0', 1, true) then
    return add
  end
  return {'ready', head_id, head_hash}
end

if scripted then
  local landed = tonumber(redis.call('GET', token) or '')
  if landed then
    return {'landed', landed}
  end
elseif believed_id ~= head_id or believed_hash ~= head_hash then
  return {'moved', head_id, head_hash}
end

-- Return the key to write for the idempotency key of an event of this source, and the event_id that it was appended
-- as before, if it was. An event that is gone counts as this source's: the caller reports that it is gone.
local taken = {}
local function look_up(shared, own, source)
  local first = tonumber(redis.call('GET', shared) or '')
  if first then
    local id = number(first) .. '-0'
    local entry = own and redis.call('XRANGE', events, id, id)[1]
    if not entry or entry[2][6] == source then
      return shared, first
    end
  elseif not (own and taken[shared]) then
    taken[shared] = true
    return shared, own and tonumber(redis.call('GET', own) or '')
  end
  return own, tonumber(redis.call('GET', own) or '')
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
  local names = tonumber(ARGV[at + 7])
  if names then
    local first
    event.once, first = look_up(KEYS[key + 1], names == 2 and KEYS[key + 2], event.source)
    key = key + names
    if first then
      seen[#seen + 1] = i
      seen[#seen + 1] = first
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

local now = redis.call('TIME')
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local committed = {}
for text in string.gmatch(ARGV[6], '%d+') do
  committed[#committed + 1] = math.min(tonumber(text), ms)
end
-- The clock may be set back; commit time is not.
local newest = redis.pcall('XREVRANGE', time, '+', '-', 'COUNT', 1)[1]
local not_before = newest and tonumber(string.match(newest[1], '^(%d+)')) or 0

-- From here on Redis may refuse a write: out of memory, read-only, forbidden to this user. It decides at the first
-- one, and then lets a script that has written go on; but SET and XADD can be forbidden one by one. So the keys come
-- first, because SET itself can undo them, and the first event decides about all the others.
local set = {}
local function remember(key, id)
  local reply = redis.pcall('SET', key, number(id), 'PX', ttl)
  if reply.err then
    return reply
  end
  set[#set + 1] = key
end
local function absent(refusal)
  for _, key in ipairs(set) do
    redis.pcall('SET', key, '', 'PXAT', 1)  -- expired in 1970, so it is gone at once; DEL may be forbidden
  end
  return refusal
end

for i = 1, count do
  local refusal = batch[i].once and remember(batch[i].once, batch[i].id)
  if refusal then
    return absent(refusal)
  end
end
if scripted then
  ttl = TOKEN_MS
  local refusal = remember(token, batch[1].id)
  if refusal then
    return absent(refusal)
  end
end

local function add(call, event)
  return call('XADD', events, number(event.id) .. '-0', 'timestamp', event.timestamp, 'kind', event.kind,
    'source', event.source, 'payload', event.payload, 'prev_hash', event.prev_hash, 'hash', event.hash)
end

local first = add(redis.pcall, batch[1])
if type(first) == 'table' and first.err then
  return absent(cut_end() or first)
end

-- The indexes can be rebuilt from the chain, so a damaged one is reported and does not stop it.
local refused = {}
local function index(name, id)
  local reply = redis.pcall('XADD', name, id, '', '')
  if type(reply) == 'table' and reply.err then
    refused[#refused + 1] = name .. ': ' .. tostring(reply.err)
  end
end

local answer = {'appended', batch[1].id, '', head_hash}
for i = 1, count do
  local event = batch[i]
  if i > 1 then
    add(redis.call, event)
  end
  index(event.by_kind, number(event.id) .. '-0')
  index(event.by_source, number(event.id) .. '-0')
  not_before = math.max(committed[i] or ms, not_before)
  index(time, number(not_before) .. '-' .. number(event.id))
  if scripted then
    answer[#answer + 1] = event.hash
  end
end
answer[3] = table.concat(refused, '; ')
return answer
