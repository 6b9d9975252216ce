-- What was taken by quickly and is not counted yet, by key.
local taken = {}
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
    local key, now = keys[i].key, standing(keys[i])
    taken[key] = (taken[key] or 0) + 1
    now.used = now.used + 1
    if now.rule.rate then
      now.tat = math.max(now.tat, NOW) + now.rule.per / now.rule.rate
      redis.call('HSET', LIMITS, 't' .. key, string.format('%.3f', now.tat))
    end
  end
  return true
end
-- count_taken(): what was taken is counted: one step a key, however many tasks it was. What fails is done later,
-- by a timer, for the tasks are in the stream: so many less than none are given back.
local function count_taken()
  for key, n in pairs(taken) do
    taken[key] = nil
    if not pcall(redis.call, 'HINCRBY', LIMITS, 's' .. key, n) then
      local time = redis.call('TIME')
      timer(NOW + 5000, cjson.encode({ 'free', key, int(-n) .. ' ' .. time[1] .. '.' .. time[2] }))
    end
  end
end
