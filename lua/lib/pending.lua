-- pending(from, to, limit, ...): rows of the pending list (of all consumers, or of the one named last);
-- none where there is no stream or no group. Any other error is raised: to take it for "nothing
-- is pending" would be to give up, or to throw away, what is.
local function pending(...)
  local page = redis.pcall('XPENDING', STREAM, GROUP, ...)
  if not page.err then return page end
  if string.find(page.err, 'NOGROUP', 1, true) then return {} end
  return error(page.err, 0)
end
