-- said(fault): the words of an error that pcall caught.
local function said(fault)
  return type(fault) == 'table' and fault.err or tostring(fault)
end
-- denied(words): whether an error says that the user has no right to a command or key.
local function denied(words)
  return string.find(words, 'ACL failure', 1, true) or string.find(words, 'NOPERM', 1, true)
    or string.find(words, 'The user executing the script', 1, true)
end
-- beside(reply): what a write beside the task itself, its event or its count, was answered (by
-- redis.pcall). Raises when the right to it is missing, so that the task waits for the right; any
-- other refusal (a key that holds something else, a count that is no number) is passed over: there
-- nothing can be kept, and no task may wait for it.
local function beside(reply)
  if type(reply) == 'table' and reply.err then
    if denied(reply.err) then error(reply.err, 0) end
    return nil
  end
  return reply
end
