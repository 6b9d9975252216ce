-- Of the end that is being written: whether its record is, and its event.
local begun, event
-- finish(id, state, name, attempt, entry, worker, run_ms, body, ttl_ms, note, now, task, kept): the one
-- terminal transition of a task that a worker had: its record and its event. `body` is its result,
-- its error, or why it was cancelled or has expired. It raises what
-- fails, for the caller to call unfinish; afterwards the caller drops the task's entry, and then
-- calls notify_all. `task` (name, payload, opts) is kept with a failed task, for inspection and replay. A
-- result that is not kept leaves its id behind for a minute: a producer that sends the task again after
-- a lost reply must find it known, though it was run and settled in the meantime. `kept`: a result that dependants have
-- still to read; its record expires when they have.
local function finish(id, state, name, attempt, entry, worker, run_ms, body, ttl_ms, note, now, task, kept)
  local record = TASK .. id
  begun, event = false, nil
  if state == 'succeeded' then
    if ttl_ms == '0' then
      redis.call('HSET', record, 'state', state, 'entry', entry, 'worker', worker, 'run_ms', run_ms)
      begun = true
      redis.call('PEXPIRE', record, 60000)
    elseif kept then
      redis.call('HSET', record, 'state', state, 'entry', entry, 'result', body, 'name', name,
        'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now, 'keep_ms', ttl_ms)
      begun = true
    else
      redis.call('HSET', record, 'state', state, 'entry', entry, 'result', body, 'name', name,
        'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now)
      begun = true
      redis.call('PEXPIRE', record, ttl_ms)
    end
  elseif state ~= 'failed' then
    redis.call('HSET', record, 'state', state, 'entry', entry, 'reason', body, 'name', name,
      'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now)
    begun = true
    redis.call('PEXPIRE', record, ttl_ms)
  else
    redis.call('HSET', record, 'state', state, 'entry', entry, 'error', body, 'name', name,
      'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now,
      'payload', task and task.payload or '', 'opts', task and task.opts or '')
    begun = true
    redis.call('PEXPIRE', record, DEAD_TTL)
    redis.call('ZADD', DEAD, now, id)
    local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL, 'LIMIT', 0, 20)
    for i = 1, #old do redis.call('ZREM', DEAD, old[i]) end
  end
  event = log_attempt(id, name, state, worker, attempt, entry, run_ms, note)
end
-- unfinish(id, state, logged): undoes a finish that failed, or one that is not to be: the task is where
-- it was. `logged` is its event.
local function unfinish(id, state, logged)
  local record = TASK .. id
  redis.pcall('HDEL', record, 'state', 'result', 'error', 'reason', 'name', 'attempt', 'worker', 'run_ms',
    'finished_ms', 'payload', 'opts', 'keep_ms')
  redis.pcall('PERSIST', record)
  if state == 'failed' then redis.pcall('ZREM', DEAD, id) end
  if logged then redis.pcall('XDEL', HISTORY, logged) end
end
-- finished(id, state, ...): finish, whole or not at all; the words of what failed, or nil.
local function finished(id, state, ...)
  local ok, fault = pcall(finish, id, state, ...)
  if ok then return nil end
  if begun then unfinish(id, state, event) end
  return said(fault)
end
