-- create_group: makes the stream's consumer group where it is missing.
-- KEYS:
--   1 stream
-- ARGV:
--   1 group
-- RETURN: 1 when it was made, 0 when it was there
-- COST: PERSIST + XGROUP CREATE
-- WHY: at entry 0, so that what was added before is read, too. A plain XGROUP CREATE is refused by a
--   server beyond maxmemory: a worker that comes to drain it would not get in.
--@include maxmemory
allow_growth(KEYS[1])
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if not made.err then return 1 end
if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
return made
