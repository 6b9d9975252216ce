-- fire: adds the tasks of a schedule's occurrences and moves its next time.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 history_max: events kept, about
--   2 name
--   3 version: which `next` was computed of; '' adds tasks and leaves its times
--   4 expected: the next time it was computed of, ms
--   5 next: when it fires after these, ms
--   6 past: the latest occurrence that is done with, ms
--   7 again: how long after a fire that nobody finished it is due again, ms
--   8 skipped: how many occurrences before these are left out
--   9 catches_up: 1 when the tasks run one after another, as far as they may not overlap
--   for each occurrence (2): id, time (ms)
-- RETURN: a word (fired; stale: it has another version or next time, or is paused, and nothing was done; unknown;
--   fault), the words of the fault, and of the tasks that were not simply added what enqueue_gated says
-- COST: HGET twice, HSET twice, ZADD four times, ZRANGE twice; a task as in enqueue_gated
-- WHY: the task is added and the next time moved in one step, and only by who computed from what stands: so an
--   occurrence comes once, whoever calls, however often. Its task's id is made of its time: what a
--   backfill has added is known. Proofs before the first task: what follows them is not refused.
--   An occurrence that cannot be stored stays the next, and the record says why.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local GROUP, HISTORY_MAX, TTL = '', ARGV[1], 86400000
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
local NAME, VERSION, EXPECTED = ARGV[2], ARGV[3], ARGV[4]
--@include now
--@include fault
--@include schedules
local has, payload, value = schedule(NAME)
if not has then return { 'unknown', '', {} } end
if VERSION ~= '' and (int(has.version) ~= VERSION or int(has.next) ~= EXPECTED or has.paused) then
  return { 'stale', '', {} }
end
redis.call('HSET', SCHEDULES, NAME, value)
redis.call('ZADD', due_of(has.lane), 'XX', 0, '')
redis.call('ZADD', OWN_DELAYED, 'XX', 0, '')
--@include look
--@include options
--@include later
--@include lanes
--@include room
--@include whole
--@include pending
--@include entry
--@include attempt
--@include history
--@include notify
--@include batch
--@include tally
--@include slots
--@include together
--@include turns
--@include gate
--@include deadline
--@include unstarted
--@include more
--@include follow_up
--@include mark
--@include accept
local text = has.definition
local adds = cjson.decode(text)
local opts = ARGV[9] == '1' and adds.catch_up or adds.opts
local conditions = ARGV[9] == '1' and '' or adds.conditions
local answer, fault, at_fault = {}, '', nil
go_to(has.lane)
GROUP = look('', 'HGET', 'meta:' .. STREAM, 'group') or '' -- that of its workers; schedulers have none
-- Adds the occurrences, up to the first that cannot be stored.
local function add_occurrences()
  for at = 10, #ARGV, 2 do
    local position = (at - 8) / 2
    go_to(has.lane)
    local happened, words = accept({ id = ARGV[at], name = adds.task, payload = payload, opts = opts, due = 0,
      conditions = conditions })
    if happened == 'fault' then
      fault, at_fault = words, ARGV[at + 1]
      break
    elseif happened == 'known' then
      answer[#answer + 1] = position
    elseif happened and happened[1] ~= 'again' then
      answer[#answer + 1] = { position, happened[1], happened[2], happened[3] }
      has.skipped = has.skipped + 1
    else
      has.fired = has.fired + 1
      if tonumber(ARGV[at + 1]) >= has.last_ms then has.last, has.last_ms = ARGV[at], tonumber(ARGV[at + 1]) end
    end
  end
end
add_occurrences()
write_parents()
follow_up()
has.fault = fault
if VERSION ~= '' and at_fault ~= EXPECTED then
  has.skipped = has.skipped + tonumber(ARGV[8])
  has.past, has.next = tonumber(ARGV[6]), tonumber(at_fault or ARGV[5])
  if at_fault then has.past = has.next - 1 end
  has.again = tonumber(ARGV[7])
  redis.call('ZADD', due_of(has.lane), int(has.next), NAME)
end
redis.call('HSET', SCHEDULES, NAME, cjson.encode(has) .. '\n' .. payload)
if VERSION ~= '' and at_fault ~= EXPECTED then ring(has.lane) end
return { fault == '' and 'fired' or 'fault', fault, answer }
