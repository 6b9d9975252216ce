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
