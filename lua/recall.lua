-- recall: the steps that a task has done, as its record has them; it only reads.
-- KEYS:
--   1 task_prefix
-- ARGV:
--   1 id
--   2 whole: 1 with what they came to, 0 their heads alone
-- RETURN: the server's time in ms, and a list of: the step's number, its head and its body (see lib/step.lua), how
--   many bytes these have
-- COST: TIME, HGET, and HMGET where there are any
-- WHY: one command an attempt, at its first step. There are at most 1,000.
--@include now
--@include look
local record, answer, names = KEYS[1] .. ARGV[1], {}, {}
local last = math.min(tonumber(look(false, 'HGET', record, 'steps') or 0) or 0, 1000)
for i = 1, last do names[i] = 'step:' .. int(i) end
local values = last > 0 and look({}, 'HMGET', record, unpack(names, 1, last)) or {}
for i = 1, last do
  local value = values[i]
  if value then
    local size = #value
    if ARGV[2] ~= '1' then value = string.match(value, '^[^\n]*\n[^\n]*\n') or '' end
    answer[#answer + 1] = i
    answer[#answer + 1] = value
    answer[#answer + 1] = size
  end
end
return { now_ms(), answer }
