-- requeue(entry, task, from, delay_ms, reason, now): a task waits again: in the stream at once, or in the
-- delayed set until its time; its old entry is the caller's to drop, afterwards. `from`, the old
-- entry and the consumer that asked, stays in the record, so that the same request sent twice is
-- answered as done, and the late request of a worker whose task was taken away is not. Without it
-- (the server or a keeper put the task back) the record keeps what it said. Answers the due time,
-- or 0. It notes what undoes it (see whole).
local function requeue(entry, task, from, delay_ms, reason, now)
  local record = TASK .. task.id
  if delay_ms <= 0 then
    local new = add(task.id, task.name, task.payload, task.attempt, task.recovered, task.opts)
    undoing('XDEL', STREAM, new)
    if from then
      redis.call('HSET', record, 'entry', new, 'from', from)
      undoing('HDEL', record, 'from')
    else
      redis.call('HSET', record, 'entry', new)
    end
    undoing('HSET', record, 'entry', entry)
    return 0
  end
  if not (delay_ms < 1e13) then error('a delay of ' .. delay_ms .. ' ms is out of range', 0) end
  local due = now + delay_ms
  redis.call('HSET', record, 'state', 'delayed', 'entry', '', 'reason', reason, 'from', from,
    'name', task.name, 'payload', task.payload, 'attempt', task.attempt,
    'recovered', task.recovered, 'opts', task.opts)
  undoing('HSET', record, 'entry', entry)
  undoing('HDEL', record, 'state', 'reason', 'from', 'name', 'payload', 'attempt', 'recovered', 'opts')
  redis.call('ZADD', DELAYED, due, task.id)
  undoing('ZREM', DELAYED, task.id)
  return due
end
