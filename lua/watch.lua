-- watch: how one task stands; a task that is not settled is watched by a client's inbox.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 waiters
-- ARGV:
--   1 group
--   2 id
--   3 inbox: '' only looks
-- RETURN: state ('unknown' when there is no such task, or none whose result was kept), the record as a
--   flat list, the consumer ('' when it is not running)
-- COST: HGETALL + XPENDING, and HGET + PERSIST + HSET to watch
-- WHY: looking and leaving the address in one step: a settlement between the two would never be
--   notified. A settlement asks for waiters with a single EXISTS, so work without waiters pays nothing.
local STREAM, GROUP = KEYS[1], ARGV[1]
--@include maxmemory
--@include pending
--@include look
local record = look({}, 'HGETALL', KEYS[2] .. ARGV[2])
if #record == 0 then return { 'unknown', record, '' } end
local state, entry, kept, consumer, more
for i = 1, #record, 2 do
  if record[i] == 'steps' or record[i] == 'events' then more = true end
  if record[i] == 'state' then state = record[i + 1] end
  if record[i] == 'entry' then entry = record[i + 1] end
  if record[i] == 'result' then kept = true end
end
if more then -- what steps came to, and messages, are asked for by recall
  local some = {}
  for i = 1, #record, 2 do
    if not string.find(record[i], '^step:') and not string.find(record[i], '^events?:') then
      some[#some + 1] = record[i]
      some[#some + 1] = record[i + 1]
    end
  end
  record = some
end
if (state == 'succeeded' and not kept) or not (state or entry) then return { 'unknown', record, '' } end
if not state then
  local held = pending(entry, entry, 1)
  if #held == 1 then
    state, consumer = 'running', held[1][2]
  elseif #redis.call('XRANGE', STREAM, entry, entry) == 1 then
    state = 'queued'
  else
    return { 'unknown', record, '' }
  end
end
if ARGV[3] ~= '' and (state == 'delayed' or state == 'waiting' or state == 'queued' or state == 'running') then
  allow_growth(KEYS[3])
  local waiting = look('', 'HGET', KEYS[3], ARGV[2])
  if waiting == '' then
    return { state, record, consumer or '' } -- no address can be left: the caller asks again
  elseif not waiting then
    redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
  elseif not string.find('\n' .. waiting .. '\n', '\n' .. ARGV[3] .. '\n', 1, true) then
    redis.call('HSET', KEYS[3], ARGV[2], waiting .. '\n' .. ARGV[3])
  end
end
return { state, record, consumer or '' }
