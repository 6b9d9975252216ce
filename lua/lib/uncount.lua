-- uncount(batch, state): one end of a batch's task is counted no more, and the batch has not finished: who was not
-- released by its end waits for the next. A batch that was deleted stays so. Raises when the right to count is missing.
local function uncount(batch, state)
  if batch == '' or redis.call('EXISTS', BATCH .. batch) == 0 then return end
  beside(redis.pcall('HINCRBY', BATCH .. batch, state, -1))
  if redis.pcall('HDEL', BATCH .. batch, 'finished_ms') == 1
    and redis.pcall('EXISTS', DEPENDANTS .. 'b:' .. ref_of(batch)) == 1 then
    redis.pcall('HSET', BATCH .. batch, 'dependants', '1')
  end
end
