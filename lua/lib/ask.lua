-- Workers whose supervisors were told in this call.
local told = {}
-- ask_to_end(entry, consumer, word, channel): keeps the wish that a task of this worker ends ('ask'; not
-- weaker than it was), for its heartbeats to say, and tells its supervisor at once.
local function ask_to_end(entry, consumer, word, channel)
  local key, worker = 'wishes:' .. STREAM .. ':' .. consumer, 'worker:' .. STREAM .. ':' .. consumer
  if word == 'force' or redis.call('HGET', key, entry) ~= 'force' then redis.call('HSET', key, entry, word) end
  if redis.pcall('HEXISTS', worker, 'started_ms') == 1 then redis.pcall('HSET', worker, 'asked', '1') end
  if not told[consumer] then redis.pcall('PUBLISH', channel, 'asked ' .. consumer) end
  told[consumer] = true
end
