-- started_opts(opts): the options of a task that has started and will go on later: its deadline counts no more, and
-- no limit drops it.
local function started_opts(opts)
  local gate
  opts, gate = again_opts(opts)
  if gate == '' or string.find('\n' .. gate .. '\n', '\ns\n', 1, true) then return opts end
  return (string.gsub(opts, '"gate":"', '"gate":"s\\n', 1))
end
