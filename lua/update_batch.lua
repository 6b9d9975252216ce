-- update_batch: from now on the calls of a batch are of another version of its function.
-- KEYS:
--   1 batch_prefix
-- ARGV:
--   1 batch
--   2 version: that which this one is, one more than there are
--   3 function: its packet, signed for this batch
--   4 made: what names the function when the batch is resumed, '' nothing
-- RETURN: this version; the one that another client has set meanwhile, as a negative number; 0 where there is no
--   such batch
-- COST: EXISTS + HGET, and HSET or HGET
-- WHY: two clients that update a batch at the same time make two versions, each of which says which results
--   it made; a batch that is gone is not made anew, without its counts and its end. Sent again, it finds itself.
local key = KEYS[1] .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 0 end
local now = tonumber(redis.call('HGET', key, 'version') or 1)
if now + 1 == tonumber(ARGV[2]) then
  redis.call('HSET', key, 'version', ARGV[2], 'function', ARGV[3], 'made:' .. ARGV[2], ARGV[4])
  return now + 1
end
if redis.call('HGET', key, 'function') == ARGV[3] then return now end
return -now
