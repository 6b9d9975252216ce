-- notify(inbox, id, state, body, whole_body): one settled task into a client's inbox. A small body rides
-- along and saves the client a round trip (`whole_body`: a large one too, for it is kept nowhere
-- else); the inbox of a client that never comes back expires.
local function notify(inbox, id, state, body, whole_body)
  local key = INBOX .. inbox
  if whole_body or #body <= 16384 then
    redis.call('XADD', key, '*', 'id', id, 'state', state, 'body', body)
  else
    redis.call('XADD', key, '*', 'id', id, 'state', state)
  end
  redis.call('PEXPIRE', key, 3600000)
end
-- log_attempt(id, name, state, worker, attempt, entry, run_ms, note): one event of the capped
-- history, the end of one attempt. Answers its entry, nil where the history cannot hold it.
local function log_attempt(id, name, state, worker, attempt, entry, run_ms, note)
  return aside('XADD', HISTORY, 'MAXLEN', '~', HISTORY_MAX, '*', 'id', id, 'name', name,
    'state', state, 'worker', worker, 'attempt', attempt, 'queued_ms',
    string.match(entry, '^%d+') or '', 'run_ms', run_ms, 'note', note)
end
local begun, event -- of the end that is being written: whether its record is, and its event
-- finish(id, state, name, attempt, entry, worker, run_ms, body, ttl_ms, note, now, task): the one
-- terminal transition of a task: its record and its event. It raises what fails, for the caller
-- to call unfinish; afterwards the caller drops the task's entry, and then tells (see tell).
-- `task` (name, payload, opts) is kept with a failed task, for inspection and replay. A result
-- that is not kept leaves its id behind for a minute: a producer that sends the task again after
-- a lost reply must find it known, though it was run and settled in the meantime.
local function finish(id, state, name, attempt, entry, worker, run_ms, body, ttl_ms, note, now, task)
  local record = TASK .. id
  begun, event = false, nil
  if state == 'succeeded' then
    if ttl_ms == '0' then
      redis.call('HSET', record, 'state', state, 'entry', entry, 'worker', worker, 'run_ms', run_ms)
      begun = true
      redis.call('PEXPIRE', record, 60000)
    else
      redis.call('HSET', record, 'state', state, 'entry', entry, 'result', body, 'name', name,
        'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now)
      begun = true
      redis.call('PEXPIRE', record, ttl_ms)
    end
  elseif state == 'failed' then
    redis.call('HSET', record, 'state', state, 'entry', entry, 'error', body, 'name', name,
      'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now,
      'payload', task and task.payload or '', 'opts', task and task.opts or '')
    begun = true
    redis.call('PEXPIRE', record, DEAD_TTL)
    redis.call('ZADD', DEAD, now, id)
    local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL, 'LIMIT', 0, 20)
    for i = 1, #old do redis.call('ZREM', DEAD, old[i]) end
  else
    redis.call('HSET', record, 'state', state, 'entry', entry, 'name', name, 'attempt', attempt,
      'finished_ms', now)
    begun = true
    redis.call('PEXPIRE', record, ttl_ms)
  end
  event = log_attempt(id, name, state, worker, attempt, entry, run_ms, note)
end
-- unfinish(id, state, logged): undoes a finish that failed, or one that is not to be: the task is where
-- it was. `logged` is its event.
local function unfinish(id, state, logged)
  local record = TASK .. id
  if state == 'cancelled' then
    redis.pcall('HDEL', record, 'state', 'finished_ms')
  else
    redis.pcall('HDEL', record, 'state', 'result', 'error', 'name', 'attempt', 'worker', 'run_ms',
      'finished_ms', 'payload', 'opts')
  end
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
local waited -- whether anyone waits for any task: asked once a call, nobody else writes meanwhile
-- tell(id, state, body, inbox, unkept): an end is told to the task's own inbox and to all that wait for it.
-- Raises what fails: the task has ended, and who was not told asks by himself.
local function tell(id, state, body, inbox, unkept)
  if inbox ~= '' then pcall(notify, inbox, id, state, body, unkept) end
  if waited == nil then waited = redis.call('EXISTS', WAITERS) == 1 end
  if waited then
    local waiting = redis.call('HGET', WAITERS, id)
    if waiting then
      redis.call('HDEL', WAITERS, id)
      for address in string.gmatch(waiting, '[^\n]+') do
        if address ~= inbox then pcall(notify, address, id, state, body, unkept) end
      end
    end
  end
end
-- inbox_of(opts): the inbox named in a task's options (our own small JSON, never a payload).
local function inbox_of(opts)
  if not opts or opts == '' then return '' end
  local ok, decoded = pcall(cjson.decode, opts)
  return ok and type(decoded) == 'table' and type(decoded.inbox) == 'string' and decoded.inbox or ''
end
