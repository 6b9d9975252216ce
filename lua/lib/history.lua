-- log_attempt(id, name, state, worker, attempt, entry, run_ms, note): one event of the capped
-- history, the end of one attempt. Answers its entry, nil where the history cannot hold it.
local function log_attempt(id, name, state, worker, attempt, entry, run_ms, note)
  local event = redis.pcall('XADD', HISTORY, 'MAXLEN', '~', HISTORY_MAX, '*', 'id', id, 'name', name,
    'state', state, 'worker', worker, 'attempt', attempt, 'queued_ms',
    string.match(entry, '^%d+') or '', 'run_ms', run_ms, 'note', note)
  if type(event) == 'string' then return event end
  return beside(event)
end
