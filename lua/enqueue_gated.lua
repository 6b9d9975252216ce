-- enqueue_gated: adds tasks of which some may have to wait: for parents, a key with room, a unique key.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 channel: where schedulers listen for an earlier due time
--   for each task (6): id, name, payload, opts, due ('' now, '+N' in N ms, 'N' at server time N ms),
--     conditions (lines: its parents, as <policy><kind><lane> <id>; ?<policy> of a unique key)
-- RETURN: the tasks that were not simply added: a position (from 1) when its id was known already; a
--   position, an error's words and its id when it was not stored; a position, a word (joined,
--   replaced, pushed, again, dropped), the id of this task or the ref of the one that stands in its
--   place, and how it stands or why
-- COST: per task that has room XADD + HSETNX; one that has none or has parents HSETNX + HSET; later HSET + ZADD. Per
--   call HMGET of its keys, HSET of their counts, one ZADD a line, HMGET + HSET of the marks of parents; for each
--   parent HMGET + RPUSH + HINCRBY
-- WHY: whether there is room, whether parents have ended and who holds a unique key is only known
--   here, and true only until the next command. A task that is refused leaves nothing behind, and
--   the others are stored. Its id is taken first, so a call sent again finds all of them known.
local redis, ARGV = redis, ARGV -- to find a global takes longer, many times a task
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local GROUP, HISTORY_MAX, TTL = ARGV[1], ARGV[2], 86400000
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
--@include now
--@include fault
--@include look
--@include options
--@include later
--@include lanes
--@include room
--@include quickly
--@include wake
local answer, earliest, rest = {}, 0, nil
local function say(at, happened, words)
  local position = (at + 2) / 6
  if happened == 'known' then
    answer[#answer + 1] = position
  elseif happened == 'fault' then
    answer[#answer + 1] = { position, words, ARGV[at] }
  elseif happened and happened ~= true then
    answer[#answer + 1] = { position, happened[1], happened[2], happened[3] }
  end
end
do -- how their keys stand is read for many tasks together
  local asked, seen = {}, {}
  for at = 4, #ARGV > 9 and #ARGV or 0, 6 do
    local opts = ARGV[at + 3]
    if not seen[opts] then
      seen[opts] = true
      local keys = terms(option(opts, 'gate')).keys
      for i = 1, #keys do
        local key = keys[i].key
        if not seen[key] then
          seen[key] = true
          asked[#asked + 1] = key
        end
      end
    end
  end
  for from = 1, #asked, 100 do pcall(stand, asked, from, math.min(from + 99, #asked)) end
end
for at = 4, #ARGV, 6 do
  if ARGV[at + 4] ~= '' or ARGV[at + 5] ~= '' then
    rest = at
    break
  end
  local ok, done = pcall(quickly, ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], option(ARGV[at + 3], 'gate'))
  if not ok then
    say(at, 'fault', said(done))
  elseif done then
    say(at, done)
  else
    rest = at
    break
  end
end
if not rest then
  write_counts()
  return answer
end
-- The first that is not so simple, and all after it: an earlier one is not overtaken. What they take is made only
-- here, for to make it takes as long as to add a task.
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
--@include behind
--@include run_after
for at = rest, #ARGV, 6 do
  local when, due, opts = ARGV[at + 4], 0, ARGV[at + 3]
  local ok, done = true, false
  if when ~= '' then
    due = string.sub(when, 1, 1) == '+' and NOW + tonumber(when) or tonumber(when)
  elseif ARGV[at + 5] == '' then
    ok, done = pcall(wait_behind, ARGV[at], ARGV[at + 1], ARGV[at + 2], opts, option(opts, 'gate'))
  else
    ok, done = pcall(wait_after, ARGV[at], ARGV[at + 1], ARGV[at + 2], opts, option(opts, 'gate'), ARGV[at + 5])
  end
  if not ok then
    say(at, 'fault', said(done))
  elseif done then
    say(at, done)
  else
    say(at, accept({ id = ARGV[at], name = ARGV[at + 1], payload = ARGV[at + 2], opts = opts, due = due,
      conditions = ARGV[at + 5], attempt = '1', recovered = '0', gate = false, terms = false, new = true, more = false,
      place = false }))
  end
  if due > NOW and (earliest == 0 or due < earliest) then earliest = due end
end
write_parents()
follow_up()
wake(earliest, ARGV[3])
return answer
