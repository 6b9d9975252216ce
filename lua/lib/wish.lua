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
