-- read(entry): the fields of a stream entry as a table, or nil when the entry is gone.
local function read(entry)
  local found = redis.call('XRANGE', STREAM, entry, entry)
  if #found == 0 then return nil end
  local flat, fields = found[1][2], {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
-- may_drop(): proves that entries can be dropped, before anything is written: where it cannot be, the
-- script ends here and nothing has changed. No entry has the id 0-0. These are the first writes
-- of a script and take no memory: after them a server beyond maxmemory allows all others, so a
-- full server still drains.
local function may_drop()
  redis.call('XACK', STREAM, GROUP, '0-0')
  redis.call('XDEL', STREAM, '0-0')
end
-- drop(entry): acknowledge and delete, once what was to be kept of it is written (see may_drop).
local function drop(entry)
  redis.call('XACK', STREAM, GROUP, entry)
  redis.call('XDEL', STREAM, entry)
end
-- add(id, name, payload, attempt, recovered, opts): one new stream entry for a task's next attempt;
-- always the same fields in the same order, which a stream stores without repeating their names.
-- Not one table: making it took promote half a microsecond a task.
local function add(id, name, payload, attempt, recovered, opts)
  return redis.call('XADD', STREAM, '*', 'id', id, 'name', name, 'payload', payload,
    'attempt', attempt, 'recovered', recovered, 'opts', opts)
end
-- is_count(text): whether it is a count that arithmetic cannot break: some digits, at most nine.
local function is_count(text)
  return text and #text <= 9 and string.find(text, '^%d+$')
end
-- sound(task): whether an entry has all that a task needs.
local function sound(task)
  return task and task.id and task.name and task.payload and task.opts
    and is_count(task.attempt) and is_count(task.recovered)
end
