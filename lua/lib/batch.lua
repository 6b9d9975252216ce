-- countable(batch): the batch if its ends can be counted, '' when it was deleted, has expired or is no
-- batch. Raises when the right to count them is missing: to be asked before anything is written,
-- for a batch that misses an end is waited for in vain.
local function countable(batch)
  if batch == '' or redis.call('EXISTS', BATCH .. batch) == 0 then return '' end
  return beside(redis.pcall('HINCRBY', BATCH .. batch, 'retried', 0)) and batch or ''
end
