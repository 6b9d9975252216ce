-- postpone(entry, task, from, delay_ms, reason, now): a task waits in the delayed set until its time, which
-- is answered; its old entry is the caller's to drop, afterwards. For `from` see requeue. It notes what
-- undoes it (see whole).
local function postpone(entry, task, from, delay_ms, reason, now)
  local record, due = TASK .. task.id, now + delay_ms
  if not (delay_ms < 1e13) then error('a delay of ' .. delay_ms .. ' ms is out of range', 0) end
  redis.call('HSET', record, 'state', 'delayed', 'entry', '', 'reason', reason, 'from', from,
    'name', task.name, 'payload', task.payload, 'attempt', task.attempt,
    'recovered', task.recovered, 'opts', task.opts)
  undoing('HSET', record, 'entry', entry)
  undoing('HDEL', record, 'state', 'reason', 'from', 'name', 'payload', 'attempt', 'recovered', 'opts')
  redis.call('ZADD', DELAYED, due, task.id)
  undoing('ZREM', DELAYED, task.id)
  return due
end
