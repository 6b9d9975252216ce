-- enqueue_gated: adds tasks of which some may have to wait: for parents, a key with room, a unique key.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 channel: where schedulers listen for an earlier due time
--   for each task (6): id, name, payload, opts, due ('' now, '+N' in N ms, 'N' at server time N ms),
--     conditions (lines: its parents, as <policy><kind><lane> <id>; ?<policy> of a unique key)
-- RETURN: the tasks that were not simply added: a position (from 1) when its id was known already; a
--   position, an error's words and its id when it was not stored; a position, a word (joined,
--   replaced, pushed, again, dropped), the id of the task that stands, and how it stands or why
-- COST: per task HSETNX, and XADD + HSET (now), HSET + ZADD (later), HSET + ZADD (waits for parents); for
--   each key HMGET + HINCRBY, and where it has no room HSET + ZADD twice + HINCRBY; for each parent
--   HMGET + RPUSH + HSETNX + HINCRBY
-- WHY: whether there is room, whether parents have ended and who holds a unique key is only known
--   here, and true only until the next command. A task that is refused leaves nothing behind, and
--   the others are stored. Its id is taken first, so a call sent again finds all of them known.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local GROUP, HISTORY_MAX, TTL = ARGV[1], ARGV[2], 86400000
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
--@include now
--@include fault
--@include whole
--@include look
--@include pending
--@include entry
--@include attempt
--@include history
--@include options
--@include later
--@include notify
--@include lanes
--@include batch
--@include tally
--@include gate
--@include unstarted
--@include follow_up
--@include accept
--@include wake
local answer, earliest = {}, 0
for at = 4, #ARGV, 6 do
  local when, due = ARGV[at + 4], 0
  if when ~= '' then due = string.sub(when, 1, 1) == '+' and NOW + tonumber(when) or tonumber(when) end
  local task = { id = ARGV[at], name = ARGV[at + 1], payload = ARGV[at + 2], opts = ARGV[at + 3], due = due,
    conditions = ARGV[at + 5] }
  local said_of, words = accept(task)
  local position = (at + 2) / 6
  if said_of == 'known' then
    answer[#answer + 1] = position
  elseif said_of == 'fault' then
    answer[#answer + 1] = { position, words, task.id }
  elseif said_of then
    answer[#answer + 1] = { position, said_of[1], said_of[2], said_of[3] }
  end
  if due > NOW and (earliest == 0 or due < earliest) then earliest = due end
end
follow_up()
wake(earliest, ARGV[3])
return answer
