-- forget_steps(record): what the steps of a task came to, and the messages to it, are gone: it begins anew.
local function forget_steps(record)
  local names, gone = redis.call('HKEYS', record), {}
  for i = 1, #names do
    local name = names[i]
    if name == 'steps' or name == 'awaits' or string.find(name, '^step:') or string.find(name, '^events?:?') then
      gone[#gone + 1] = name
    end
  end
  for from = 1, #gone, 1000 do
    local to = math.min(from + 999, #gone)
    redis.call('HDEL', record, unpack(gone, from, to))
  end
end
-- carry_steps(from, to): what the steps of a task came to, and the messages to it, are in another record, too.
local function carry_steps(from, to)
  local names, some = redis.call('HKEYS', from), {}
  for i = 1, #names do
    local name = names[i]
    if name == 'steps' or string.find(name, '^step:') or string.find(name, '^events?:?') then some[#some + 1] = name end
  end
  for i = 1, #some do redis.call('HSET', to, some[i], redis.call('HGET', from, some[i])) end
end
