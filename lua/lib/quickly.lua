-- quickly(id, name, payload, opts, gate): a new task that asks for nothing but keys, and has room under all of
-- them, is in the stream, in as few commands as one that asks for nothing; false: nothing was
-- written. An id that is known answers 'known'; raises what fails, with nothing written.
local function quickly(id, name, payload, opts, gate)
  local asked = terms(gate)
  local keys = asked.keys
  if asked.unique or asked.expires then return false end
  for i = 1, #keys do
    if keys[i].weight > 1 or obstacle(keys[i], false) then return false end
  end
  local entry = redis.call('XADD', STREAM, '*', 'id', id, 'name', name, 'payload', payload, 'attempt', '1',
    'recovered', '0', 'opts', opts)
  local made = redis.pcall('HSETNX', TASK .. id, 'entry', entry)
  if made ~= 1 then
    redis.call('XDEL', STREAM, entry)
    if made == 0 then return 'known' end
    return error(made.err, 0)
  end
  for i = 1, #keys do
    local now = standing(keys[i])
    count(now.s, 1)
    now.used = now.used + 1
    if now.rule.rate then
      now.tat = math.max(now.tat, NOW) + now.rule.per / now.rule.rate
      redis.call('HSET', LIMITS, 't' .. keys[i].key, string.format('%.3f', now.tat))
    end
  end
  return true
end
