--[[
  read_entries: which events ranges of indexes hold. Writes nothing.

  KEYS     the indexes; one may come several times

  ARGV     for each: low, high and count: entry ids to read from and to, and how many entries at most

  returns  for each the ids of these entries, joined by commas; nil where it is not a stream
]]
local answer = {}
for i = 1, #KEYS do
  local entries = redis.pcall('XRANGE', KEYS[i], ARGV[3 * i - 2], ARGV[3 * i - 1], 'COUNT', ARGV[3 * i])
  if entries.err then
    answer[i] = false
  else
    local ids = {}
    for j = 1, #entries do
      ids[j] = entries[j][1]
    end
    answer[i] = table.concat(ids, ',')
  end
end
return answer
