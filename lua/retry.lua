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
-- RETURN: the positions (from 1) of attempts that were refused: the lease was lost
-- COST: per attempt XRANGE + XACK + XDEL + (XADD + HSET, or HSET + ZADD) + XADD of history
-- WHY: the count goes up in the same step as the task is put back, so no crash can run it once
--   more than allowed. A snooze is uncounted. `from` in the record answers a call sent twice.
--   An entry that is pending but gone (trimmed by other hands) is let go.
local STREAM, DELAYED, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BATCH, SETTLED = KEYS[6], nil
local GROUP, CONSUMER, HISTORY_MAX = ARGV[1], ARGV[2], ARGV[3]
--@include now
--@include owned
--@include entry
--@include requeue
local INBOX, WAITERS, DEAD, DEAD_TTL = nil, nil, nil, nil
--@include finish
--@include batch
local lost, earliest, now = {}, 0, now_ms()
for at = 5, #ARGV, 9 do
  local entry, id, state = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local mine = owned({ entry }, CONSUMER)[entry]
  local task = mine and read(entry)
  if mine and (not task or sound(task)) then drop(entry) end
  if sound(task) then
    if state == 'retried' then task.attempt = int(tonumber(task.attempt) + 1) end
    local due = requeue(task, entry .. ' ' .. CONSUMER, tonumber(ARGV[at + 7]),
      state == 'retried' and 'retry' or 'snooze', now)
    if due ~= 0 and (earliest == 0 or due < earliest) then earliest = due end
    if ARGV[at + 6] ~= '' then redis.call('HSET', TASK .. id, 'error', ARGV[at + 6]) end
    redis.call('HDEL', TASK .. id, 'unknown_ms', 'parked_ms')
    log_attempt(id, ARGV[at + 3], state, CONSUMER, ARGV[at + 4], entry, ARGV[at + 5], ARGV[at + 8])
    redis.call('HINCRBY', KEYS[5], state, 1)
    local batch = batch_of(task.opts)
    if batch ~= '' and redis.call('EXISTS', BATCH .. batch) == 1 then
      redis.call('HINCRBY', BATCH .. batch, state, 1)
    end
  elseif redis.call('HGET', TASK .. id, 'from') ~= entry .. ' ' .. CONSUMER then
    lost[#lost + 1] = (at + 4) / 9
  end
end
wake(earliest, ARGV[4])
return lost
