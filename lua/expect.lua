-- expect: a running task takes the event it waits for, where there is one.
-- KEYS:
--   1 stream
--   2 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 entry
--   4 id
--   5 number: which step of the task the wait is, from 1
--   6 name: of the event
--   7 taken: how many messages of that name the task has taken
--   8 last: the event of that name that it took last, '-' none
--   9 timeout: how long it waits, ms, where it begins to wait now; '' without end
-- RETURN: a word: 'done', 'none' (it is to be put off: see suspend) or 'lost'; the server's time in ms; the step as its
--   record has it then
-- COST: XPENDING, XDEL of nothing, TIME, HGET + HGET + GET, and HGET + HSET + HDEL + ZREM of one that is done
-- WHY: what it took, or that its time is over, is written at once: the next attempt goes the same way, whatever
--   has come since. The fence is that of step.
local STREAM, GROUP, CONSUMER = KEYS[1], ARGV[1], ARGV[2]
--@include now
--@include pending
--@include look
--@include step
--@include step_kind
--@include event
local now, id, number, name, taken = now_ms(), ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
if #pending(ARGV[3], ARGV[3], 1, CONSUMER) == 0 then return { 'lost', now, '' } end
redis.call('XDEL', STREAM, '0-0')
local record, lane = KEYS[2] .. id, string.match(STREAM, '![a-z]+$')
local field = 'step:' .. number
local kept = look(false, 'HGET', record, field)
local kind, due = step_kind(kept)
if kind == 'e' or kind == 't' then return { 'done', now, kept } end
local mark, body = event_for(record, name, taken, ARGV[8])
local late = kind == 'w' and now >= tonumber(due) or not kind and ARGV[9] ~= '' and tonumber(ARGV[9]) <= 0
if not mark and not late then return { 'none', now, kept or '' } end
keep_step(record, number, name .. '\n' .. int(now) .. (mark and ' 0 e ' .. mark or ' 0 t -'), body or '')
took(record, lane and lane .. '\n' .. id or id, name, taken, mark or '')
return { 'done', now, redis.call('HGET', record, field) }
