-- step: what one step of a running task came to, kept in its record.
-- KEYS:
--   1 stream
--   2 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 entry
--   4 id
--   5 number: which step of the task it is, from 1
--   6 name
--   7 run_ms
--   8 body
-- RETURN: 1; 0 when the lease was lost
-- COST: XPENDING, XDEL of nothing, TIME, HGET + HSET
-- WHY: the next attempt of the task is given this instead of running the step again. So it is written by the
--   worker that has the task, and no other: one whose task was taken away must not overwrite what the next
--   one does. Sent again it writes the same. The XDEL of nothing lets a full server take it: the task is to end.
local STREAM, GROUP, CONSUMER = KEYS[1], ARGV[1], ARGV[2]
--@include now
--@include pending
--@include step
if #pending(ARGV[3], ARGV[3], 1, CONSUMER) == 0 then return 0 end
redis.call('XDEL', STREAM, '0-0')
keep_step(KEYS[2] .. ARGV[4], ARGV[5], ARGV[6] .. '\n' .. int(now_ms()) .. ' ' .. ARGV[7] .. ' r -', ARGV[8])
return 1
