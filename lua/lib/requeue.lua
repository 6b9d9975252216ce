-- requeue(entry, task, from): a task waits in the stream again; its old entry is the caller's to drop,
-- afterwards. `from`, the old entry and the consumer that asked, stays in the record, so that the same
-- request sent twice is answered as done, and the late request of a worker whose task was taken away
-- is not. Without it (the server or a supervisor put the task back) the record keeps what it said. It
-- notes what undoes it (see whole).
local function requeue(entry, task, from)
  local record = TASK .. task.id
  local new = add(task.id, task.name, task.payload, task.attempt, task.recovered, task.opts)
  undoing('XDEL', STREAM, new)
  if from then
    redis.call('HSET', record, 'entry', new, 'from', from)
    undoing('HDEL', record, 'from')
  else
    redis.call('HSET', record, 'entry', new)
  end
  undoing('HSET', record, 'entry', entry)
end
