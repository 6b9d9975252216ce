-- snapshot: every figure of the dashboard at one instant; it only reads.
-- KEYS:
--   1 stream
--   2 delayed
--   3 dead
--   4 counters
--   5 workers
--   6 worker_prefix
--   7 meta
--   8 history
--   9 waiting
-- ARGV:
--   1 group
--   2 limit: most workers listed
-- RETURN: a flat list of figure, value: now_ms, length, pending, delayed, next_due_ms (-1 none),
--   next_timer_ms (of the timers among the delayed, -1 none), waiting and waiting_since_ms (of the oldest,
--   -1 none; both of all lanes of the queue), dead, oldest_ms (time of the oldest unread entry, -1 none),
--   group, lease_ms (-1 none), paused, history, workers_total, counters (flat list), workers (a list of
--   consumer, deadline_ms, pending, details as a flat list)
-- COST: a dozen commands whose cost does not grow with the queue, and two a worker listed
-- WHY: figures read one by one never add up; here ready + pending + delayed + waiting is what there is.
local STREAM, DELAYED, DEAD, COUNTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WORKERS, WORKER, META, HISTORY, GROUP = KEYS[5], KEYS[6], KEYS[7], KEYS[8], ARGV[1]
local WAITING = KEYS[9]
--@include now
--@include look
--@include unread
--@include delayed
--@include figures
return (figures(tonumber(ARGV[2])))
