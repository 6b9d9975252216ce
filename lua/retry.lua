-- retry: attempts that ended without an end of their task: it runs again, at once or later.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
--   4 history
--   5 counters
--   6 batch_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 history_max: events kept, about
--   4 channel: where schedulers listen for an earlier due time
--   for each attempt (9): entry, id, state (retried|snoozed), name, attempt, run_ms, error (JSON or
--     ''), delay (ms), note (error type or '')
-- RETURN: the attempts that were refused: a position (from 1) when the lease was lost; a position and
--   an error's words when it is broken: it could not be written, nothing of it was, and it is pending;
--   a position and 'asked to end' when that is wished of it (see cancel): it is to be settled instead
-- COST: XACK and XDEL of nothing, one EXISTS; per attempt XPENDING + XRANGE + (XADD + HSET, or HSET +
--   ZADD) + XADD of history + HINCRBY + XACK + XDEL + HDEL; per gated task and key HINCRBY + HMGET, and
--   what follows
-- WHY: the count goes up in the same step as the task is put back, so no crash can run it once
--   more than allowed. A snooze is uncounted. `from` in the record answers a call sent twice.
--   An entry that is pending but gone (trimmed by other hands) is let go. Each attempt is written
--   whole or not at all, its entry dropped last: see settle. Keys are given back with the entry.
local STREAM, DELAYED, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BATCH, GROUP, CONSUMER, HISTORY_MAX = KEYS[6], ARGV[1], ARGV[2], ARGV[3]
local COUNTERS, DEAD, WAITERS, INBOX, SETTLED, TTL = nil
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include drop
--@include attempt
--@include requeue
--@include postpone
--@include wake
--@include history
--@include options
--@include later
--@include wish
--@include deadline
local refused, earliest, now = {}, 0, now_ms()
local tried = {} -- attempts of tasks that hold keys, to be seen to when all are put back
local function again(at, task)
  local entry, state = ARGV[at], ARGV[at + 2]
  if state == 'retried' then task.attempt = int(tonumber(task.attempt) + 1) end
  if string.find(task.opts, '"gate"', 1, true) then
    task.opts = again_opts(task.opts) -- it has started: its deadline counts no more
  end
  local delay, from, due = tonumber(ARGV[at + 7]), entry .. ' ' .. CONSUMER, 0
  if delay <= 0 then
    requeue(entry, task, from)
  else
    due = postpone(entry, task, from, delay, state == 'retried' and 'retry' or 'snooze', now)
  end
  local logged = log_attempt(ARGV[at + 1], ARGV[at + 3], state, CONSUMER, ARGV[at + 4], entry,
    ARGV[at + 5], ARGV[at + 8])
  if logged then undoing('XDEL', HISTORY, logged) end
  beside(redis.pcall('HINCRBY', KEYS[5], state, 1))
  return due
end
may_drop()
for at = 5, #ARGV, 9 do
  local entry, id, state = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local mine = owned({ entry }, CONSUMER)[entry]
  local task = mine and read(entry)
  if mine and not task then drop(entry) end
  if sound(task) then
    local fault, due = wish(entry, CONSUMER) and 'asked to end', nil
    if not fault then fault, due = whole(again, at, task) end
    if fault then
      refused[#refused + 1] = { (at + 4) / 9, fault }
    else
      drop(entry)
      if string.find(task.opts, '"gate"', 1, true) then
        tried[#tried + 1] = { id, task.opts, due == 0, state == 'snoozed' }
      end
      if due ~= 0 and (earliest == 0 or due < earliest) then earliest = due end
      if ARGV[at + 6] ~= '' then redis.pcall('HSET', TASK .. id, 'error', ARGV[at + 6]) end
      redis.pcall('HDEL', TASK .. id, 'unknown_ms', 'parked_ms')
      local batch = option(task.opts, 'batch')
      if batch ~= '' and redis.pcall('EXISTS', BATCH .. batch) == 1 then
        redis.pcall('HINCRBY', BATCH .. batch, state, 1)
      end
    end
  elseif redis.pcall('HGET', TASK .. id, 'from') ~= entry .. ' ' .. CONSUMER then
    refused[#refused + 1] = (at + 4) / 9
  end
end
-- What was tried is to be tried again: later, it gives its keys back, but for its turn of a strict order; at once, it
-- keeps them, and takes new tokens. A snooze gives its tokens back.
if #tried > 0 then
  TTL = 86400000
--@include look
--@include notify
--@include lanes
--@include batch
--@include tally
--@include room
--@include slots
--@include together
--@include turns
--@include gate
--@include unstarted
--@include more
--@include follow_up
  local function give(id, opts, at_once, snoozed)
    local keys = terms(option(opts, 'gate')).keys
    if not at_once then give_back(id, keys, true, true) end
    for i = 1, #keys do
      if at_once ~= snoozed then token(keys[i], at_once and 1 or -1) end
    end
  end
  for i = 1, #tried do pcall(give, tried[i][1], tried[i][2], tried[i][3], tried[i][4]) end
  follow_up()
end
wake(earliest, ARGV[4])
return refused
