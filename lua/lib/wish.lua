-- Whether anything of this worker is wished to end: asked once a call.
local wished
-- wish(entry, consumer): 'ask' or 'force' where somebody wishes that a task of this worker ends (see
-- cancel), else nil. One EXISTS a call where nobody does.
local function wish(entry, consumer)
  local key = 'wishes:' .. STREAM .. ':' .. consumer
  if wished == nil then wished = redis.pcall('EXISTS', key) == 1 end
  local word = wished and redis.pcall('HGET', key, entry)
  return type(word) == 'string' and word or nil
end
-- fulfilled(entry, consumer): a wish whose task has ended, or has left that worker, is forgotten.
local function fulfilled(entry, consumer)
  redis.pcall('HDEL', 'wishes:' .. STREAM .. ':' .. consumer, entry)
end
local told = {} -- workers whose supervisors were told in this call
-- ask_to_end(entry, consumer, word, channel): keeps the wish that a task of this worker ends ('ask'; not
-- weaker than it was), for its heartbeats to say, and tells its supervisor at once.
local function ask_to_end(entry, consumer, word, channel)
  local key, worker = 'wishes:' .. STREAM .. ':' .. consumer, 'worker:' .. STREAM .. ':' .. consumer
  if word == 'force' or redis.call('HGET', key, entry) ~= 'force' then redis.call('HSET', key, entry, word) end
  if redis.pcall('HEXISTS', worker, 'started_ms') == 1 then redis.pcall('HSET', worker, 'asked', '1') end
  if not told[consumer] then redis.pcall('PUBLISH', channel, 'asked ' .. consumer) end
  told[consumer] = true
end
