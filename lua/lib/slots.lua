-- token(term, n): n tokens more (or fewer) are taken than tasks were let in: a retry at once, a snooze.
local function token(term, n)
  local now = standing(term)
  local rule = now.rule
  if not rule.rate then return end
  now.tat = math.max(now.tat, NOW) + n * term.weight * rule.per / rule.rate
  redis.call('HSET', LIMITS, 't' .. term.key, string.format('%.3f', now.tat))
end
local freed = {}
-- give_back(id, keys, in_stream, stays, times): the slots of a task that has left the stream, or holds its turn of a
-- strict order elsewhere. `stays`: it is tried again later, and keeps its turn. `times`: of so many tasks that ask for
-- the same, none of it strictly in order.
local function give_back(id, keys, in_stream, stays, times)
  for i = 1, #keys do
    local term = keys[i]
    if stays and term.order then
      redis.call('HSET', TASK .. id, 'held', 'o')
    elseif in_stream or term.order then
      freed[term.key] = (freed[term.key] or 0) + term.weight * (times or 1)
    end
  end
end
-- free_key(key, n): so many slots of a key are free; who waits under it is followed up.
local function free_key(key, n)
  local now = stands[key] or standing({ key = key })
  n = math.min(n, now.used) -- never fewer than none
  count(now.s, -n)
  now.used = now.used - n
  if now.waiting > 0 then later('more', key) end
end
-- free(): the slots that were given back are free: one step a key, however many tasks it was. What fails is
-- done later, by a timer with words of its own: two of them are not one.
local function free()
  local keys = {}
  for key in pairs(freed) do keys[#keys + 1] = key end
  for from = 1, keys[2] and #keys or 0, 100 do pcall(stand, keys, from, math.min(from + 99, #keys)) end
  for i = 1, #keys do
    local key, n = keys[i], freed[keys[i]]
    freed[key] = nil
    if not pcall(free_key, key, n) then
      local time = redis.call('TIME')
      later('free', key, int(n) .. ' ' .. time[1] .. '.' .. time[2])
    end
  end
end
-- close(id, state, gate, in_stream): what a gated task held or locked is free, now that its end is written.
-- `in_stream`: it ended there, with all its keys; elsewhere it may hold its turn of a strict order.
local function close(id, state, gate, in_stream)
  local asked = terms(gate)
  local keys = asked.keys
  if asked.unique then
    local ref, holder = ref_of(id), redis.call('HGET', UNIQUE, asked.unique)
    if holder == 's' .. ref or holder == 't' .. ref then redis.call('HDEL', UNIQUE, asked.unique) end
  end
  if state == 'failed' and keys[1] and keys[1].order then
    local now = standing(keys[1])
    if now.rule.on_failure == 'pause' then
      redis.call('HSET', LIMITS, 'p' .. keys[1].key, int(NOW))
      now.paused = int(NOW)
    end
  end
  -- Last, for what fails before it is done again, and slots are given back once.
  if in_stream then
    give_back(id, keys, true, false)
  elseif keys[1] and keys[1].order and redis.call('HGET', TASK .. id, 'held') then
    redis.call('HDEL', TASK .. id, 'held')
    give_back(id, keys, false, false)
  end
  if asked.parents then later('read', ref_of(id)) end
end
-- closed(id, state, gate, in_stream): close, where nothing may stop what is next: what fails is done later.
local function closed(id, state, gate, in_stream)
  if not pcall(close, id, state, gate, in_stream) then
    later('close', ref_of(id), cjson.encode({ state, gate, in_stream }))
  end
end
