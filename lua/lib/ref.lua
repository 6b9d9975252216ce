-- record_of(ref): the key of the record of a waiting task, its id and its lane ('', '!high' or '!low').
local function record_of(ref)
  local lane, id = string.match(ref, '^(![a-z]+)\n(.*)$')
  return 'task:' .. string.sub(WAITING, 9) .. (lane or '') .. ':' .. (id or ref), id or ref, lane or ''
end
