-- notify(inbox, id, state, body, whole): one settled task into a client's inbox. A small body rides
-- along and saves the client a round trip (`whole`: a large one too, for it is kept nowhere else);
-- the inbox of a client that never comes back expires.
local function notify(inbox, id, state, body, whole)
  local key = INBOX .. inbox
  if whole or #body <= 16384 then
    redis.call('XADD', key, '*', 'id', id, 'state', state, 'body', body)
  else
    redis.call('XADD', key, '*', 'id', id, 'state', state)
  end
  redis.call('PEXPIRE', key, 3600000)
end
-- log_attempt(id, name, state, worker, attempt, entry, run_ms, note): one event of the capped
-- history, the end of one attempt.
local function log_attempt(id, name, state, worker, attempt, entry, run_ms, note)
  redis.call('XADD', HISTORY, 'MAXLEN', '~', HISTORY_MAX, '*', 'id', id, 'name', name,
    'state', state, 'worker', worker, 'attempt', attempt, 'queued_ms',
    string.match(entry, '^%d+') or '', 'run_ms', run_ms, 'note', note)
end
local waited -- whether anyone waits for any task: asked once a call, nobody else writes meanwhile
-- finish(id, state, ...): the one terminal transition of a task; the caller has dropped its entry
-- before. `task` (name, payload, opts) is kept with a failed task, for inspection and replay.
-- A result that is not kept leaves its id behind for a minute: a producer that sends the task again
-- after a lost reply must find it known, though it was run and settled in the meantime.
local function finish(id, state, name, attempt, entry, worker, run_ms, body, ttl_ms, inbox, note, now, task)
  local record = TASK .. id
  if state == 'succeeded' then
    if ttl_ms == '0' then
      redis.call('HSET', record, 'state', state, 'entry', entry, 'worker', worker, 'run_ms', run_ms)
      redis.call('PEXPIRE', record, 60000)
    else
      redis.call('HSET', record, 'state', state, 'entry', entry, 'result', body, 'name', name,
        'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now)
      redis.call('PEXPIRE', record, ttl_ms)
    end
  elseif state == 'failed' then
    redis.call('HSET', record, 'state', state, 'entry', entry, 'error', body, 'name', name,
      'attempt', attempt, 'worker', worker, 'run_ms', run_ms, 'finished_ms', now,
      'payload', task and task.payload or '', 'opts', task and task.opts or '')
    redis.call('PEXPIRE', record, DEAD_TTL)
    redis.call('ZADD', DEAD, now, id)
    local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL, 'LIMIT', 0, 20)
    for i = 1, #old do redis.call('ZREM', DEAD, old[i]) end
  else
    redis.call('HSET', record, 'state', state, 'entry', entry, 'name', name, 'attempt', attempt,
      'finished_ms', now)
    redis.call('HDEL', record, 'payload', 'opts', 'recovered', 'reason')
    redis.call('PEXPIRE', record, ttl_ms)
  end
  log_attempt(id, name, state, worker, attempt, entry, run_ms, note)
  if inbox ~= '' then notify(inbox, id, state, body, ttl_ms == '0') end
  if waited == nil then waited = redis.call('EXISTS', WAITERS) == 1 end
  if waited then
    local waiting = redis.call('HGET', WAITERS, id)
    if waiting then
      redis.call('HDEL', WAITERS, id)
      for address in string.gmatch(waiting, '[^\n]+') do
        if address ~= inbox then notify(address, id, state, body, ttl_ms == '0') end
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
