-- What undoes the writes of the task at hand, in their order.
local noted = {}
-- undoing(command, ...): the command that undoes the write just made, should a later one fail; or a function, where
-- it is not made yet.
local function undoing(...)
  noted[#noted + 1] = { ... }
end
-- undo(writes): undoes what was noted, the last write first.
local function undo(writes)
  for i = #writes, 1, -1 do
    local command = writes[i][1]
    if type(command) == 'function' then
      command(unpack(writes[i], 2, #writes[i]))
    else
      redis.pcall(unpack(writes[i], 1, #writes[i]))
    end
  end
end
-- whole(write, ...): write(...), whole or not at all: when it raises, what it has written
-- is undone, the last write first. A server undoes nothing of a script that fails. Answers the
-- error's words (nil: it is written) and what write answered.
local function whole(write, ...)
  noted = {}
  local ok, answer = pcall(write, ...)
  if ok then return nil, answer end
  undo(noted)
  return said(answer)
end
