-- waits: why tasks wait, and under which limits; it only reads.
-- KEYS:
--   1 waiting
--   2 limits
-- ARGV:
--   1 sample: of how many of the oldest waiting tasks the reasons are counted
--   2 limit: most limit keys, those under which most tasks wait
-- RETURN: the server's time in ms, how many tasks wait, reasons: a flat list of reason, count; limit
--   keys: a list of key, the key or pattern whose rule holds ('' none), its rule, slots in use, how many wait,
--   the theoretical arrival time of its rate in ms and paused since in ms ('' none)
-- COST: ZCARD, HLEN; one record a sampled task; two reads a limit key looked at: of all keys where there
--   are few, else those under which a sampled task waits
-- WHY: there may be a key for each customer, so a look that reads all of them would hold up work; those
--   under which tasks wait are the ones that people ask about.
local WAITING, LIMITS = KEYS[1], KEYS[2]
--@include now
--@include look
--@include ref
--@include limit_row
--@include waits
local reasons, keys = waits(tonumber(ARGV[1]), tonumber(ARGV[2]))
return { now_ms(), look(0, 'ZCARD', WAITING), reasons, keys }
