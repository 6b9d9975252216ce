-- of_steps(name): whether a field of a record is of the steps of its task, or a message to it.
local function of_steps(name)
  return name == 'steps' or string.find(name, '^step:') or name == 'events' or string.find(name, '^events?:')
end
-- forget_steps(record): what the steps of a task came to, and the messages to it, are gone: it begins anew.
local function forget_steps(record)
  local names, gone = redis.call('HKEYS', record), { 'awaits', 'checkpoint' }
  for i = 1, #names do
    if of_steps(names[i]) then gone[#gone + 1] = names[i] end
  end
  for from = 1, #gone, 1000 do
    local to = math.min(from + 999, #gone)
    redis.call('HDEL', record, unpack(gone, from, to))
  end
end
-- carry_steps(from, to): what the steps of a task came to, and the messages to it, are in another record, too.
local function carry_steps(from, to)
  local names = redis.call('HKEYS', from)
  for i = 1, #names do
    if of_steps(names[i]) then redis.call('HSET', to, names[i], redis.call('HGET', from, names[i])) end
  end
end
