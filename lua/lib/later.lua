-- What follows from what this script did, beyond the tasks it was given: keys with room, dependants
-- of tasks and batches that ended. See follow_up, which does it.
local todo = {}
local waited -- whether anyone waits for any task: asked once a call, for nothing else writes meanwhile
-- later(kind, what, detail): something to follow up once the script's own work is written.
local function later(kind, what, detail)
  todo[#todo + 1] = { kind, what, detail or '' }
end
