-- look(empty, command, ...): what a read answers; `empty` where there is nothing to read: no stream, no
-- group, or a key that holds something else, which must not hide the rest from a monitor.
-- Any other error is raised.
local function look(empty, ...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  local words = reply.err
  if string.find(words, 'WRONGTYPE', 1, true) or string.find(words, 'NOGROUP', 1, true)
    or string.find(words, 'no such key', 1, true) then return empty end
  return error(words, 0)
end
