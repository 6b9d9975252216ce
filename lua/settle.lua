-- settle: the terminal outcome of many attempts of one worker, each counted once or refused.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 history
--   4 counters
--   5 dead
--   6 waiters
--   7 inbox_prefix
--   8 batch_prefix
--   9 settled_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 history_max: events kept, about
--   4 dead_ttl: how long a failed task is kept, ms
--   for each outcome (11): entry, id, state (succeeded|failed), name, attempt, run_ms, body (result
--     or error, JSON), ttl (of a result, ms; 0 keeps none), inbox ('' none), note (error type or ''),
--     batch ('' none)
-- RETURN: the outcomes that were refused: a position (from 1) when the lease was lost; a position and
--   an error's words when it is broken: it could not be written, nothing of it was, and it is pending
-- COST: per call XPENDING, XDEL of nothing, XACK, XDEL and one HINCRBY a state; per outcome HSET +
--   PEXPIRE + XADD; per batch among them a handful (see lib/batch.lua)
-- WHY: the entry must be pending for this very consumer (see lib/owned.lua). A server undoes nothing
--   of a script that fails: so first it is proved that entries can be dropped, then each record is
--   written, whole or not at all, then the entries of those are dropped, and last whoever waits is
--   told. One outcome that cannot be written does not touch the others. An outcome sent again
--   after a lost reply finds its own entry and worker in the record and is answered as settled.
local STREAM, TASK, HISTORY, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local WAITERS, INBOX, BATCH, SETTLED = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local GROUP, CONSUMER, HISTORY_MAX, DEAD_TTL = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
--@include now
--@include fault
--@include pending
--@include owned
--@include entry
--@include finish
--@include batch
local entries = {}
for at = 5, #ARGV, 11 do entries[#entries + 1] = ARGV[at] end
local mine = owned(entries, CONSUMER)
local taken, refused, tasks = {}, {}, {}
for i = 1, #entries do
  local entry, at = entries[i], 11 * i - 6
  if mine[entry] then
    mine[entry] = false -- the same outcome twice in one call counts once
    taken[#taken + 1] = i
    if ARGV[at + 2] == 'failed' then tasks[i] = read(entry) or {} end
  elseif mine[entry] == nil then
    -- run_ms too: a recovery that ended the task names this worker and entry, but no run time.
    local record = redis.pcall('HMGET', TASK .. ARGV[at + 1], 'state', 'entry', 'worker', 'run_ms')
    if not (record[1] == ARGV[at + 2] and record[2] == entry and record[3] == CONSUMER
      and record[4] == ARGV[at + 5]) then
      refused[#refused + 1] = i
    end
  end
end
if #taken == 0 then return refused end
local now = int(now_ms())
redis.call('XDEL', STREAM, '0-0') -- as may_drop; a refused XACK is undone below, which costs nothing
local batches = {}
for n = 1, #taken do
  local batch = ARGV[11 * taken[n] + 4]
  if batch ~= '' and not batches[batch] then batches[batch] = { {}, {}, countable(batch) } end
end
local settled, events, drops, counts = {}, {}, {}, {}
for n = 1, #taken do
  local i = taken[n]
  local at = 11 * i - 6
  local state = ARGV[at + 2]
  local fault = finished(ARGV[at + 1], state, ARGV[at + 3], ARGV[at + 4], entries[i], CONSUMER,
    ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 9], now, tasks[i])
  if fault then
    refused[#refused + 1] = { i, fault }
  else
    settled[#settled + 1] = i
    drops[#drops + 1] = entries[i]
    events[i] = event
    counts[state] = (counts[state] or 0) + 1
  end
end
local function none_ended(fault) -- for want of a right
  for j = 1, #settled do
    local i = settled[j]
    unfinish(ARGV[11 * i - 5], ARGV[11 * i - 4], events[i])
    refused[#refused + 1] = { i, said(fault) }
  end
  return refused
end
for state, n in pairs(counts) do
  local ok, fault = pcall(aside, 'HINCRBY', KEYS[4], state, n)
  if not ok then return none_ended(fault) end
end
for from = 1, #drops, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, #drops)
  local acknowledged = redis.pcall('XACK', STREAM, GROUP, unpack(drops, from, to))
  if type(acknowledged) == 'table' then
    for state, n in pairs(counts) do redis.pcall('HINCRBY', KEYS[4], state, -n) end
    return none_ended(acknowledged)
  end
  redis.call('XDEL', STREAM, unpack(drops, from, to))
end
for n = 1, #settled do
  local at = 11 * settled[n] - 6
  local id, state, inbox, batch = ARGV[at + 1], ARGV[at + 2], ARGV[at + 8], ARGV[at + 10]
  if inbox ~= '' or waited ~= false then pcall(tell, id, state, ARGV[at + 6], inbox, ARGV[at + 7] == '0') end
  if batch ~= '' then
    local ends = batches[batch]
    ends[1][#ends[1] + 1] = id
    ends[1][#ends[1] + 1] = state
    ends[2][state] = (ends[2][state] or 0) + 1
  end
end
for batch, ends in pairs(batches) do
  if ends[3] ~= '' then pcall(tally, batch, ends[1], ends[2], now) end
end
return refused
