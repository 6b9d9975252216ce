-- read(entry): the fields of a stream entry as a table, or nil when the entry is gone.
local function read(entry)
  local found = redis.call('XRANGE', STREAM, entry, entry)
  if #found == 0 then return nil end
  local flat, fields = found[1][2], {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
-- drop(entry): acknowledge and delete. Both are allowed on a server beyond maxmemory, and once a
-- script has written, its further writes are too: so a full server still drains.
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
-- sound(task): whether an entry has all that a task needs.
local function sound(task)
  return task and task.id and task.name and task.payload and task.opts
    and tonumber(task.attempt) and tonumber(task.recovered)
end
