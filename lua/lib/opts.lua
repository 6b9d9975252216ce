-- inbox_of(opts): the inbox named in a task's options (our own small JSON, never a payload).
local function inbox_of(opts)
  if not opts or opts == '' then return '' end
  local ok, decoded = pcall(cjson.decode, opts)
  return ok and type(decoded) == 'table' and type(decoded.inbox) == 'string' and decoded.inbox or ''
end
-- batch_of(opts): the batch named in a task's options; decoded only where the word stands at all.
local function batch_of(opts)
  if not opts or not string.find(opts, '"batch"', 1, true) then return '' end
  local ok, decoded = pcall(cjson.decode, opts)
  return ok and type(decoded) == 'table' and type(decoded.batch) == 'string' and decoded.batch or ''
end
