-- report: how far running attempts are, and where another attempt would go on.
-- KEYS:
--   1 stream
--   2 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   for each attempt (6): entry, id, progress ("<attempt> <done> <total>", the last "-" for none; '' nothing
--     new), age (how long it has run, ms), text (one line), checkpoint (JSON; '' nothing new)
-- RETURN: the attempts that were refused: a position (from 1) when the lease was lost; a position and
--   an error's words when its record could not be written
-- COST: XDEL of nothing, TIME, XPENDING; per attempt one HSET
-- WHY: fenced as a settlement: a late worker must not say how far its task is, nor move the place at which
--   another goes on. Both stand in the task's record, so they go with it; one HSET writes them
--   together. What a report says is no state: it may be sent twice, or be missing. The first write takes no
--   memory: after it a server beyond maxmemory takes the others, so that work that is drained keeps its
--   place.
local STREAM, TASK = KEYS[1], KEYS[2]
local GROUP, CONSUMER = ARGV[1], ARGV[2]
--@include now
--@include fault
--@include pending
--@include owned
local entries, refused = {}, {}
for at = 3, #ARGV, 6 do entries[#entries + 1] = ARGV[at] end
local mine = owned(entries, CONSUMER)
redis.call('XDEL', STREAM, '0-0')
local now = now_ms()
for i = 1, #entries do
  local at = 6 * i - 3
  if not mine[entries[i]] then
    refused[#refused + 1] = i
  else
    local fields = {}
    if ARGV[at + 2] ~= '' then
      local said = { ARGV[at + 2], int(now - tonumber(ARGV[at + 3])), int(now), ARGV[at + 4] }
      fields = { 'progress', table.concat(said, ' ') }
    end
    if ARGV[at + 5] ~= '' then
      fields[#fields + 1] = 'checkpoint'
      fields[#fields + 1] = ARGV[at + 5]
    end
    local written = redis.pcall('HSET', TASK .. ARGV[at + 1], unpack(fields))
    if type(written) == 'table' then refused[#refused + 1] = { i, said(written) } end
  end
end
return refused
