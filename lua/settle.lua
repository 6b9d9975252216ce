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
-- RETURN: the positions (from 1) of outcomes that were refused: the lease was lost
-- COST: per call XPENDING, XACK, XDEL and one HINCRBY a state; per outcome HSET + PEXPIRE + XADD;
--   per batch among them a handful (see lib/batch.lua)
-- WHY: the entry must be pending for this very consumer (see lib/owned.lua). XACK and XDEL come
--   first: they are allowed beyond maxmemory, so a full server drains. An outcome sent again
--   after a lost reply finds its own entry and worker in the record and is answered as settled.
local STREAM, TASK, HISTORY, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local WAITERS, INBOX, BATCH, SETTLED = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local GROUP, CONSUMER, HISTORY_MAX, DEAD_TTL = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
--@include now
--@include owned
--@include entry
--@include finish
--@include batch
local entries = {}
for at = 5, #ARGV, 11 do entries[#entries + 1] = ARGV[at] end
local mine = owned(entries, CONSUMER)
local accepted, lost, tasks, counts = {}, {}, {}, {}
for i = 1, #entries do
  local entry, at = entries[i], 11 * i - 6
  if mine[entry] then
    mine[entry] = false -- the same outcome twice in one call counts once
    accepted[#accepted + 1] = entry
    if ARGV[at + 2] == 'failed' then tasks[i] = read(entry) or {} else tasks[i] = true end
  elseif mine[entry] == nil then
    -- run_ms too: a recovery that ended the task names this worker and entry, but no run time.
    local record = redis.call('HMGET', TASK .. ARGV[at + 1], 'state', 'entry', 'worker', 'run_ms')
    if not (record[1] == ARGV[at + 2] and record[2] == entry and record[3] == CONSUMER
      and record[4] == ARGV[at + 5]) then
      lost[#lost + 1] = i
    end
  end
end
if #accepted == 0 then return lost end
for from = 1, #accepted, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, #accepted)
  redis.call('XACK', STREAM, GROUP, unpack(accepted, from, to))
  redis.call('XDEL', STREAM, unpack(accepted, from, to))
end
local now, batches = int(now_ms()), nil
for i = 1, #entries do
  local task = tasks[i]
  if task then
    local at = 11 * i - 6
    local id, state, name, attempt = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    counts[state] = (counts[state] or 0) + 1
    finish(id, state, name, attempt, entries[i], CONSUMER, ARGV[at + 5], ARGV[at + 6], ARGV[at + 7],
      ARGV[at + 8], ARGV[at + 9], now, task)
    local batch = ARGV[at + 10]
    if batch ~= '' then
      batches = batches or {}
      local ends = batches[batch] or { {}, {} }
      batches[batch] = ends
      ends[1][#ends[1] + 1] = id
      ends[1][#ends[1] + 1] = state
      ends[2][state] = (ends[2][state] or 0) + 1
    end
  end
end
for state, n in pairs(counts) do redis.call('HINCRBY', KEYS[4], state, n) end
if batches then
  for batch, ends in pairs(batches) do tally(batch, ends[1], ends[2], now) end
end
return lost
