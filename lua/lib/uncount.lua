-- uncount(batch, state): one end of a batch's task is counted no more, and the batch has not finished; a
-- batch that was deleted stays so. Raises when the right to count is missing.
local function uncount(batch, state)
  if batch == '' or redis.call('EXISTS', BATCH .. batch) == 0 then return end
  beside(redis.pcall('HINCRBY', BATCH .. batch, state, -1))
  redis.pcall('HDEL', BATCH .. batch, 'finished_ms')
end
