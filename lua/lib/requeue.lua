-- requeue(task, from, delay_ms, reason, now): a task whose entry was dropped waits again: in the
-- stream at once, or in the delayed set until its time. `from`, the old entry and the consumer
-- that asked, stays in the record, so that the same request sent twice is answered as done, and
-- the late request of a worker whose task was taken away is not. Without it (the server or a
-- keeper put the task back) the record keeps what it said. Answers the due time, or 0.
local function requeue(task, from, delay_ms, reason, now)
  local record = TASK .. task.id
  if from then redis.call('HSET', record, 'from', from) end
  if delay_ms <= 0 then
    redis.call('HSET', record, 'entry',
      add(task.id, task.name, task.payload, task.attempt, task.recovered, task.opts))
    return 0
  end
  local due = now + delay_ms
  redis.call('HSET', record, 'state', 'delayed', 'entry', '', 'reason', reason,
    'name', task.name, 'payload', task.payload, 'attempt', task.attempt,
    'recovered', task.recovered, 'opts', task.opts)
  redis.call('ZADD', DELAYED, due, task.id)
  return due
end
-- wake(due, channel): schedulers sleep until the earliest due time they know; tell them of an earlier one.
local function wake(due, channel)
  if due == 0 then return end
  local first = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  if first[2] and tonumber(first[2]) >= due then redis.call('PUBLISH', channel, int(due)) end
end
