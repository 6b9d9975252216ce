-- resubmit_gated: as resubmit, tasks that may have to wait: each runs again after those it depends on.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 channel: where schedulers listen for an earlier due time
--   4 call: a name of this very call; under the same name it may be sent again
--   for each task (8): id, name, payload, opts, due, counted, outdated (as for resubmit), conditions (as for
--     enqueue_gated)
-- RETURN: the tasks for which nothing was written: a position (from 1) when the task waits, runs or has
--   a result that counts; a position, an error's words and its id when it could not be stored: it is
--   as it was. All others run again, by this call or by the same call sent before
-- COST: XADD, XDEL, and ZREM twice, of nothing; per task HMGET, and of one that runs again RENAME + ZSCORE +
--   HSETNX + HSET + UNLINK, what enqueue_gated takes, and EXISTS + HINCRBY twice + HDEL for its batch;
--   HKEYS, and HGET + HSET a step that is kept
-- WHY: as resubmit; the old record is put aside in one step and comes back when the new one cannot be
--   written. Tasks are given in an order in which each comes after those it depends on: when a child
--   is looked at, its parents run again already, so that it waits for them and not for their old end. Those
--   who have still to read the old result keep the record from expiring, and read the new one.
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
--@include room
--@include slots
--@include together
--@include turns
--@include gate
--@include deadline
--@include unstarted
--@include more
--@include follow_up
--@include mark
--@include again
--@include accept
--@include uncount
--@include forget
--@include wake
local answer, earliest = {}, 0
local function again(task, kept, counted, anew)
  local record, aside = TASK .. task.id, TASK .. task.id .. '\naside'
  local ended, batch = kept[1] or counted, option(task.opts, 'batch')
  -- An end of another batch stays counted there.
  if kept[4] and kept[4] ~= '' and option(kept[4], 'batch') ~= batch then ended = '' end
  batch = ended ~= '' and countable(batch) or ''
  local died = redis.call('ZSCORE', DEAD, task.id)
  if kept[1] then
    redis.call('RENAME', record, aside)
    undoing('RENAME', aside, record)
  end
  redis.call('HSETNX', record, 'entry', '')
  undoing('DEL', record)
  if died then
    redis.call('ZREM', DEAD, task.id)
    undoing('ZADD', DEAD, died, task.id)
  end
  local happened = accepted(task)
  go_to(HOME)
  if happened and happened[1] ~= 'dropped' and happened[1] ~= 'again' then
    error('its unique key is taken by ' .. happened[2], 0)
  end
  redis.call('HSET', record, 'from', 'resubmit', 'resubmission', ARGV[4])
  if kept[9] or kept[10] then unread_of(task.id, kept[9], kept[10]) end
  if kept[6] then redis.call('HSET', record, 'readers', kept[6]) end
  parent_again(task.id, kept[6])
  if (kept[7] or kept[8]) and not anew then carry_steps(aside, record) end
  if kept[1] then redis.call('UNLINK', aside) end
  pcall(uncount, batch, ended)
  known[OWN .. task.id] = true -- it waits or runs, from here on
end
local full = redis.pcall('XADD', STREAM, '0-0', 'id', '') -- no entry can have this id
if not string.find(full.err, 'greater than 0-0', 1, true) then return full end
redis.call('XDEL', STREAM, '0-0')
redis.call('ZREM', DELAYED, '')
redis.call('ZREM', DEAD, '')
for at = 5, #ARGV, 8 do
  local task = { id = ARGV[at], name = ARGV[at + 1], payload = ARGV[at + 2], opts = ARGV[at + 3], due = 0,
    conditions = ARGV[at + 7] }
  local when, position = ARGV[at + 4], (at + 3) / 8
  local kept = redis.pcall('HMGET', TASK .. task.id, 'state', 'entry', 'resubmission', 'opts', 'corrupt', 'readers',
    'steps', 'events', 'after', 'read')
  if kept.err then
    if not string.find(kept.err, 'WRONGTYPE', 1, true) then
      write_parents()
      follow_up()
      return kept
    end
    answer[#answer + 1] = { position, kept.err, task.id }
  elseif kept[3] ~= ARGV[4] then
    local waits = kept[1] == 'delayed' or kept[1] == 'waiting' or (kept[2] and not kept[1])
    if waits or kept[5] or (kept[1] == 'succeeded' and ARGV[at + 6] ~= '1') then
      answer[#answer + 1] = position
    else
      if when ~= '' then task.due = string.sub(when, 1, 1) == '+' and NOW + tonumber(when) or tonumber(when) end
      local fault = whole(again, task, kept, ARGV[at + 5], ARGV[at + 6] ~= '')
      go_to(HOME)
      if fault then
        answer[#answer + 1] = { position, fault, task.id }
      elseif task.due > NOW and (earliest == 0 or task.due < earliest) then
        earliest = task.due
      end
    end
  end
end
write_parents()
follow_up()
wake(earliest, ARGV[3])
return answer
