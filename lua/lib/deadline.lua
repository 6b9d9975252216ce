-- dated(opts): the options of a task with its deadline as a time of the server's, and their gate.
local function dated(opts)
  local gate = option(opts, 'gate')
  local wait_ms = string.match(gate, 'x %+(%d+)$')
  if not wait_ms then return opts, gate end
  local deadline = int(NOW + tonumber(wait_ms))
  local from, to = string.find(opts, 'x +' .. wait_ms .. '"', 1, true)
  return string.sub(opts, 1, from - 1) .. 'x ' .. deadline .. string.sub(opts, to),
    (string.gsub(gate, 'x %+%d+$', 'x ' .. deadline))
end
-- again_opts(opts): the options of a task that an operator lets run again, whose deadline counts no more,
-- and their gate.
local function again_opts(opts)
  local gate = option(opts, 'gate')
  if not string.find(gate, 'x %d+$') then return opts, gate end
  local last = string.match(gate, 'x %d+$')
  local from = string.find(opts, last .. '"', 1, true)
  local before = string.gsub(string.sub(opts, 1, from - 1), '\\n$', '')
  return before .. string.sub(opts, from + #last), (string.gsub(gate, '\n?x %d+$', ''))
end
